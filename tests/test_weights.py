"""Starting a model from other weights: what is taken over, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from set_diffusion_jax.api import Model
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.weights import graft
from tests import tiny


def params(vocab_size=12, seed=0, **changes):
  return tiny.params(tiny.objective(vocab_size=vocab_size, **changes), seed)


def test_equal_models_are_taken_over_whole():
  fresh, stored = params(seed=0), params(seed=5)
  result, report = graft(fresh, stored, "there")
  jax.tree.map(np.testing.assert_array_equal, result, stored)
  assert len(report.loaded) == len(jax.tree.leaves(fresh))
  assert report.lines() == [f"{len(report.loaded)} parameters loaded"]


@pytest.mark.parametrize("mine, theirs", [(12, 9), (9, 12)])
def test_a_vocabulary_of_another_size_is_taken_over_in_part(mine, theirs):
  fresh, stored = params(mine, seed=0), params(theirs, seed=5)
  result, report = graft(fresh, stored, "there")
  assert report.partly == ("embedding", "head/bias", "head/kernel")
  common = min(mine, theirs)
  for tree, start in ((stored, 0), (fresh, common)):
    rows = slice(start, common if start == 0 else None)
    np.testing.assert_array_equal(result["embedding"][rows], tree["embedding"][rows])
    ours, other = (t["head"]["kernel"][:, rows] for t in (result, tree))
    np.testing.assert_array_equal(ours, other)


def test_parts_that_only_one_side_has():
  plain, modulated = params(), params(model__adaln=True, seed=5)
  _, report = graft(modulated, plain, "there")
  assert "blocks/adaln/kernel" in report.new and not report.left_out
  result, report = graft(plain, modulated, "there")
  assert "blocks/adaln/kernel" in report.left_out and not report.new
  jax.tree.map(lambda x, y: None, result, plain)  # the model's own structure
  assert any("left out: blocks/adaln" in line for line in report.lines())


def test_other_shapes_are_refused():
  with pytest.raises(UserError, match=r'init_from = "there": .* has shape'):
    graft(params(), params(model__ffn=64), "there")
  with pytest.raises(UserError, match="no parameter"):
    graft(params(), {"other": jnp.zeros(3)}, "there")


def test_weights_with_the_same_sums_are_told_apart():
  """All that is moved is where numbers stand, in an array or among arrays."""
  weights = {"a": np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)}
  weights["b"] = weights["a"] + 4
  others = [
    {**weights, "a": weights["a"][::-1]},
    {**weights, "a": weights["a"].T},
    {**weights, "a": weights["a"].reshape(1, 4)},
    {"a": weights["b"], "b": weights["a"]},
    {"a": weights["a"], "c": weights["b"]},
  ]
  digest = lambda params: Model(None, params, None, 0).weights_digest
  assert len({digest(x) for x in (weights, *others)}) == 1 + len(others)
  assert digest(weights) == digest(jax.tree.map(jnp.asarray, weights))
