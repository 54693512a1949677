"""Settings of what is masked, and of the loss on it."""

import dataclasses

MASK_SCHEDULES = ("linear", "cosine", "square", "square_root", "log", "log_linear")
LEVELS = ("uniform", "counts")
WEIGHTINGS = ("nelbo", "uniform")
DENOMINATORS = ("tokens", "masked", "sequences", "masked_sequences")

# What training by counts cannot be combined with: field -> the value that it needs.
_WITH_COUNTS = {
  "method.predict": "all",
  "corruption.schedule": "linear",
  "corruption.t_min": 0.0,
  "corruption.t_max": 1.0,
  "corruption.clip_width": None,
  "loss.weighting": "nelbo",
  "compat": "none",
}


@dataclasses.dataclass(frozen=True)
class CorruptionConfig:
  """What training masks of `masked`, `block` and of `general` with noise=level.

  With levels=uniform a set has a noise level t, uniform on [t_min, t_max], and each of
  its tokens is masked with probability 1 - alpha(t). With `clip_width`, which is for
  the linear schedule, each evaluation searches that range anew, for the interval at
  least so wide on which the training loss varies least (BD3-LM's clipped schedules).

  With levels=counts the number of masked tokens is uniform on 1 .. n for a set of n.
  The NELBO is the same and its estimate varies much less; there is no schedule, no
  range of levels and no other weighting then.

  Evaluation depends on none of these: see EvaluateConfig.
  """

  levels: str = "uniform"
  schedule: str = "linear"
  t_min: float = 0.0
  t_max: float = 1.0
  clip_width: float | None = None  # None: no search


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """The training loss. Evaluation is always the NELBO.

  `weighting` is of tokens masked at a noise level: nelbo, -alpha' / (1 - alpha), or
  uniform. `denominator`: tokens, nats per counted token of the global batch; masked,
  per masked one; sequences and masked_sequences, the mean over sequences of each one's
  own mean, as the published code averages.
  """

  weighting: str = "nelbo"
  denominator: str = "tokens"


def check_levels(require, config) -> None:
  """Refuses corruption.levels and evaluate.levels beside what they exclude.

  Args:
    require: (holds, field, what would be right) -> None, raises where it does not hold;
      `require.value` is of a field.
    config: of the experiment.
  """
  without = f"for method {config.method.name}, which has no noise levels"
  if config.corruption.levels == "counts":
    require(config.method.has_levels, "corruption.levels", f"uniform {without}")
    _check_with_counts(require, "corruption.levels", tuple(_WITH_COUNTS))
  if config.evaluate.levels is not None:
    require.one_of("evaluate.levels", LEVELS)
    drawn = config.evaluation_levels is not None
    require(drawn, "evaluate.levels", f"null {without}")
  if config.evaluate.levels == "counts":
    _check_with_counts(require, "evaluate.levels", ("corruption.clip_width", "compat"))


def _check_with_counts(require, field: str, names: tuple[str, ...]) -> None:
  for name in names:
    value = require.value(name)
    right = f"uniform where {name}={value}"
    require(value == _WITH_COUNTS[name], field, right)
