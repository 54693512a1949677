"""Method and noise of a published `config.json`, in this project's terms."""

import math

from set_diffusion_jax.inputs.fields import Fields

METHODS = {"AR": "ar", "MDLM": "masked", "BD3LM": "block", "SetDLM": "set"}

_LEVEL_SCHEDULES = {
  "LinearNoise": "linear",
  "CosineNoise": "cosine",
  "LogarithmicNoise": "log",
}
# Of the published noise schedules: how far they stay from 0 and 1, how they compute.
_OF_NO_EFFECT = ("cls", "eps", "precision", "window_size")


def read_method(fields: Fields, family: str, length: int, notes: list[str]) -> dict:
  """The groups `method`, `corruption` and `decode`, as far as the file says them.

  Args:
    fields: the published configuration.
    family: its architecture, of METHODS.
    length: of sequences, in tokens.
    notes: lines are added for what is taken without being said.

  Raises:
    UserError: a field that is missing, wrong, or has no counterpart here.
  """
  method: dict = {"name": METHODS[family]}
  settings: dict = {"method": method}
  if family == "AR":
    return settings
  noise = fields.group("noise_config")
  kind = noise("_target_", str).rpartition(".")[2]
  if family == "SetDLM":
    fields.only({"block_size": (length,), "eval_block_size": (length,)})
    if kind != "StaggeredNoise":
      noise.wrong("_target_", "StaggeredNoise for SetDLM")
    fields("mdlm_loss_scale", bool, False)  # of levels, which this noise has none of
    method.update(_position_offset(noise, length))
    method["eos_last"] = fields("setdlm_eos_last_in_target_order", bool, False)
    if fields("inefficient_training", bool, False):
      notes.append("inefficient_training: training continues without it")
    settings["decode"] = {"commit": "confidence"}
    window = noise.positive("desired_block_size", int)
    settings["decode"]["window"] = window
    notes.append(
      f"decode.window: not said; S = {window}, as the published code samples"
    )
    noise.finish((*_OF_NO_EFFECT, "max_block_size"))
    return settings
  settings["corruption"] = {"schedule": _level_schedule(fields, noise, kind)}
  noise.finish((*_OF_NO_EFFECT, "length", "block_size"))
  for field, name in (("t_min", "sampling_eps_min"), ("t_max", "sampling_eps_max")):
    if fields.get(name) is not None:
      settings["corruption"][field] = fields(name, float)
  if family == "BD3LM":
    method["block_size"] = fields.positive("block_size", int)
    fields.only({"eval_block_size": (method["block_size"],)})
  return settings


def _level_schedule(fields: Fields, noise: Fields, kind: str) -> str:
  if kind == "ExponentialNoise":
    powers = {2: "square", 0.5: "square_root"}
    power = noise("exp", float, 2.0)
    if power not in powers:
      noise.wrong("exp", "2 or 0.5")
    return powers[power]
  if kind not in _LEVEL_SCHEDULES:
    noise.wrong("_target_", "one of " + ", ".join((*_LEVEL_SCHEDULES, "Exponential")))
  if kind == "LinearNoise" and fields("mdlm_loss_scale", bool, False):
    return "log_linear"
  fields.only({"mdlm_loss_scale": (False,)})
  return _LEVEL_SCHEDULES[kind]


def _position_offset(noise: Fields, length: int) -> dict:
  """N and C of a StaggeredNoise (METHOD section 2).

  `desired_block_size` is S, twice the mean number of masked tokens; `max_block_size`
  is S_max, how many positions are active: S, 2 S or the whole length in the released
  models. Given `k` or `b` take its place. S = 1 and S = S_max mean k = 1, w = S / L.
  """
  for name in ("length", "block_size"):
    if noise(name, int) != length:
      noise.wrong(name, f"{length}, the sequence length")
  desired = noise.positive("desired_block_size", float)
  area = desired / (2 * length)
  active = noise.get("max_block_size")
  if active is not None and not 0 < noise("max_block_size", float) <= length:
    noise.wrong("max_block_size", f"above 0 and at most {length}, the sequence length")
  given_k, given_b = noise.get("k"), noise.get("b")
  if given_k is not None:
    power = noise.positive("k", float)
    width = area * (power + 1) / power
  elif given_b is not None:
    width = noise("b", float)
  elif desired == 1 or desired == active:
    width = 2 * area
  else:
    active = noise("max_block_size", float)
    return {"name": "set", "max_set_size": active, "prediction_budget": desired / 2}
  if not area < width <= 1:
    noise.wrong("desired_block_size", f"such that {area:g} < width <= 1, not {width:g}")
  if width == 1:  # the uniform order, whatever the power
    return {"name": "any_order"}
  active = width * (length - 1) / (1 - width)
  if math.isclose(active, round(active), rel_tol=1e-12):
    active = float(round(active))
  return {"name": "set", "max_set_size": active, "prediction_budget": desired / 2}
