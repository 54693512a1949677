"""The two ways a command ends early: the user's mistake, and a diverged run."""


class UserError(Exception):
  """A mistake in a configuration, a path or an input: one line, exit code 2.

  The message names the field, its value, and what would be right.
  """


class NonFiniteError(Exception):
  """The loss or its gradient became NaN or infinite: exit code 4."""
