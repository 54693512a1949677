"""What must be refused in one printable line."""

import pytest

from set_diffusion_jax.errors import UserError


def refused(act, *words, most=400):
  """The message of an act that must fail; it has all words, below `most` characters."""
  with pytest.raises(UserError) as error:
    act()
  message = str(error.value)
  assert message.isprintable() and len(message) < most, message
  for word in words:
    assert word in message, message
  return message
