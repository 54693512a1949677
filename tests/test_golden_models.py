"""Logits, nats and losses of the published code, in training and evaluation mode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from set_diffusion_jax.index import attends
from set_diffusion_jax.loss import loss_terms
from set_diffusion_jax.model import build_network
from set_diffusion_jax.objective import Objective
from set_diffusion_jax.order import generation_order, groups, left_to_right, singletons
from set_diffusion_jax.schedules import PositionOffset
from tests.golden import ROOT, Golden

pytestmark = pytest.mark.reference

SET_CASES = [
  (model, case)
  for model, cases in {
    "setdlm_dit": (
      "train eval train_forcedperm eval_forcedperm train_pad eval_pad".split()
    ),
    "setdlm_dit_context": (
      "train eval train_forcedperm eval_forcedperm train_eos_last".split()
    ),
    "setdlm_dit_adaln": "train eval train_forcedperm".split(),
  }.items()
  for case in cases
]
SAMPLED_CASES = [case for case in SET_CASES if "forcedperm" not in case[1]]
AR_CASES = ["train", "eval", "train_on_context", "eval_nocontext"]


@functools.cache
def golden(name):
  return Golden(name)


@functools.cache
def objective(name, method):
  g = golden(name)
  config = g.config(name=method)
  network = build_network(config.model, g.settings["vocab_size"])
  settings = g.settings
  return Objective(config, network, settings["mask_token_id"], settings["eos_token_id"])


def check(name, case, streams, batch, obj):
  """Runs the model; compares mask, logits, nats, weights and loss."""
  params = golden(name).params()
  h, _ = obj.network.hidden(params, streams.tokens, streams.index)
  logits = np.asarray(obj.network.unembed(params, h))
  slots = case["backbone_logits"].shape[1]
  real = np.asarray(streams.index.valid)[:, :slots]
  np.testing.assert_allclose(
    logits[:, :slots][real], case["backbone_logits"][real], atol=2e-4, rtol=1e-4
  )
  nats = obj.nats(params, streams)
  counted = case["tokens_mask"].shape[1]  # AR: all but the last; eval: all but BOS
  kept = slice(0, counted) if obj.one_stream else slice(-counted, None)
  mask = case["tokens_mask"]
  ours = np.asarray(streams.weight)
  np.testing.assert_array_equal(ours[:, kept], mask)
  assert ours.sum() == mask.sum()
  # The published nlls are already multiplied by the mask.
  np.testing.assert_allclose(
    np.where(mask, nats[:, kept], 0), case["nlls"] * mask, rtol=1e-4, atol=1e-4
  )
  terms = loss_terms(nats, streams.weight, "sequences")
  np.testing.assert_allclose(
    terms.numerator / terms.denominator, case["loss"], rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize("name, case_name", SET_CASES)
def test_set_diffusion(name, case_name):
  case = golden(name).case(case_name)
  obj = objective(name, "set")
  batch = golden(name).batch(case, case["context_mask"])
  order = singletons(jnp.asarray(case["permutation"], jnp.int32))
  streams = obj.streams(batch, order, train=bool(case["mode_is_train"]))
  np.testing.assert_array_equal(streams.tokens, case["backbone_xt"])
  np.testing.assert_array_equal(streams.index.position, case["backbone_position_ids"])
  np.testing.assert_array_equal(
    attends(streams.index, streams.index), case["backbone_attention_mask"][:, 0]
  )
  check(name, case, streams, batch, obj)


@pytest.mark.parametrize("name, case_name", SAMPLED_CASES)
def test_sampled_permutation(name, case_name):
  """The recorded Exp(1) draws give the recorded orders."""
  case = golden(name).case(case_name)
  noise = golden(name).settings["noise"]
  batch = golden(name).batch(case, case["context_mask"])
  last = None
  if "eos_last" in case_name:
    last = jnp.asarray(batch.tokens == golden(name).settings["eos_token_id"])
  with jax.enable_x64(True):
    schedule = PositionOffset(noise["length"], noise["b"], noise["k"])
    times = schedule.reveal_time(jnp.asarray(case["rng0_exp"]))
    group = groups(jnp.asarray(batch.valid), jnp.asarray(batch.context), last)
    fixed = ~jnp.asarray(batch.valid) | jnp.asarray(batch.context)
    order = generation_order(jnp.where(fixed, 0.0, times), group)
  np.testing.assert_array_equal(order, case["permutation"])


@pytest.mark.parametrize("case_name", AR_CASES)
def test_autoregressive(case_name):
  case = golden("ar_dit").case(case_name)
  obj = objective("ar_dit", "ar")
  context = case.get("context_mask")
  if case_name == "train_on_context":
    context = None
  batch = golden("ar_dit").batch(case, context)
  order = left_to_right(*batch.tokens.shape)
  streams = obj.streams(batch, order, train=bool(case["mode_is_train"]))
  inputs = case["backbone_xt"]
  np.testing.assert_array_equal(streams.tokens[:, : inputs.shape[1]], inputs)
  check("ar_dit", case, streams, batch, obj)


def test_every_case_is_covered():
  covered = {model: set() for model, _ in SET_CASES} | {"ar_dit": set(AR_CASES)}
  for model, case in SET_CASES:
    covered[model].add(case)
  for name, cases in covered.items():
    stored = {key.split("__")[0] for key in np.load(ROOT / "models" / name / "io.npz")}
    assert cases == stored
