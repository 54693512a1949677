"""A published DiT, checked against its tensors, in this layout and an older one."""

from collections.abc import Mapping

from set_diffusion_jax.convert.ids import NAMES, check_tokens
from set_diffusion_jax.convert.qwen3 import OF_NO_EFFECT
from set_diffusion_jax.convert.shapes import Shapes, count_layers, shape_of
from set_diffusion_jax.data import Vocabulary
from set_diffusion_jax.inputs.fields import Fields

EPSILON, BASE = 1e-5, 10_000.0  # fixed in the published code

_BACKBONE_OF_NO_EFFECT = (
  *("attn_backend", "block_size", "length", "pretrained_model_name_or_path"),
  "tie_word_embeddings",  # a DiT has a head of its own
)
_OLDER_OF_NO_EFFECT = ("attn_backend", "cross_attn", "var_min")


def dit_backbone(fields: Fields, shapes: Shapes, causal: bool) -> dict:
  """The `model` group of a published `backbone_config`.

  Args:
    fields: of the `backbone_config`.
    shapes: of the tensors, by canonical name.
    causal: whether the method is autoregressive.

  Raises:
    UserError: a field that is missing, unknown, or disagrees with the tensors.
  """
  model = _model(fields, shapes, "hidden_size", "num_layers")
  if causal != fields("causal_attention", bool, False):
    fields.wrong("causal_attention", "true for AR" if causal else "false but for AR")
  rows = shape_of(fields.path, shapes, "vocab_embed.embedding", 2)[0]
  fields.only({"is_esolm_backbone": (False,), "vocab_size": (rows,)})
  fields.finish(_BACKBONE_OF_NO_EFFECT)
  return model


def _model(fields: Fields, shapes: Shapes, width: str, layers: str) -> dict:
  rows, columns = shape_of(fields.path, shapes, "blocks.0.mlp.0.weight", 2)
  for name, found in ((width, columns), (layers, count_layers(shapes))):
    if fields(name, int) != found:
      fields.wrong(name, f"{found}, as the tensors have")
  return {
    "backbone": "dit",
    "layers": fields(layers, int),
    "width": fields(width, int),
    "heads": fields.positive("n_heads", int),
    "ffn": rows,
    "dropout": _dropout(fields),
    "adaln": fields("adaln", bool, True),
    "condition_width": fields.positive("cond_dim", int, 128),
    "norm_epsilon": EPSILON,
    "rotary_base": BASE,
  }


def _dropout(fields: Fields) -> float:
  rate = fields("dropout", float, 0.0)
  if not 0 <= rate < 1:
    fields.wrong("dropout", "from 0 to below 1")
  return rate


def read_older(
  fields: Fields, shapes: Shapes, tokens: int | None, notes: list[str]
) -> tuple[dict, Vocabulary, int]:
  """Checkpoints of bd3lms and mdlm: GPT-2 ids, [MASK] appended as the last row.

  Args:
    fields: the file's.
    shapes: of the tensors, by canonical name.
    tokens: 1 + the largest id of the tokenizer, if there is one.
    notes: lines are added for what is taken without being said.

  Returns:
    Groups of the configuration, the ids, and how many rows stand for a token.

  Raises:
    UserError: a field that is missing, unknown, wrong, or disagrees with the tensors.
  """
  notes.append("mask_token_id: not said; the last row, as those projects append it")
  notes.append(
    "bos_token_id, eos_token_id, pad_token_id: not said; the id before [MASK], GPT-2's "
    "end of text"
  )
  if fields("causal", bool, False):
    right = "false: an autoregressive model of this layout is unknown"
    fields.wrong("causal", right)
  if fields("time_conditioning", bool, False):
    fields.wrong("time_conditioning", "false; the noise level is not embedded here")
  fields.only({"architectures": (["BD3LM"], ["MDLM"]), "model_type": ("bd3lm", "mdlm")})
  length = fields.positive("model_length", int)
  size = fields.positive("vocab_size", int)
  rows = shape_of(fields.path, shapes, "vocab_embed.embedding", 2)[0]
  if size != rows:
    fields.wrong("vocab_size", f"{rows}, the rows of the embedding")
  check_tokens(fields.path, tokens, rows)
  settings: dict = {"model": _model(fields, shapes, "hidden_dim", "n_blocks")}
  settings["method"] = {"name": "masked"}
  block = fields.get("block_size") is not None
  if block and fields.positive("block_size", int) < length:
    settings["method"] = {"name": "block", "block_size": fields("block_size", int)}
    fields.only({"cross_attn": (True,)})  # the clean text is there to be seen
  settings["data"] = {"length": length, "bos": False}
  settings["corruption"] = {"schedule": "linear" if block else "log_linear"}
  ends = ("sampling_eps_min", "sampling_eps_max")
  levels = [fields(end, float) for end in ends if fields.get(end) is not None]
  if len(levels) == 2 and "block_size" in settings["method"]:
    settings["corruption"].update(zip(("t_min", "t_max"), levels, strict=True))
  _check_ids(fields, {"mask_token_id": size - 1}, size - 2)
  fields.finish((*_OLDER_OF_NO_EFFECT, *OF_NO_EFFECT))
  end = size - 2
  vocabulary = Vocabulary(size=size, bos=end, eos=end, pad=end, mask=size - 1)
  return settings, vocabulary, size


def _check_ids(fields: Fields, ids: Mapping[str, int], otherwise: int) -> None:
  """Ids that this layout does not need; said ones must be those that are taken."""
  fields.only({name: (ids.get(name, otherwise),) for name in NAMES})
