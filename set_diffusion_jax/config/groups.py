"""Every setting: its default and its meaning, in groups, and what it can be.

Those of the transformer are in `model.py`, those of noise and loss in `noise.py`.
"""

import dataclasses

from set_diffusion_jax.diffusion.method import MethodFacts

NOISES = ("full", "level")
PREDICTIONS = ("all", "active")
LEARNING_RATES = ("constant", "cosine")
DECAYS = ("absolute", "relative")
SOURCES = ("embedded", "text", "lines", "jsonl", "tfds", "prepared", "none")
CUTS = ("wrapped", "sentence", "prompt")
ENDS = ("documents", "sequences", "both", "none")
DETOKENIZERS = (
  "none", "wikitext", "ptb", "lm1b", "lambada", "scientific_papers", "gsm8k",
)  # fmt: skip
COMPATS = ("none", "setdlms")
COMMITS = ("order", "confidence", "margin", "posterior")
CANDIDATES = ("window", "order")
FRESH_ORDERS = ("position", "drawn")
PROMOTIONS = ("first", "passed")
CONTEXTS = ("left", "both")
WEIGHTS = ("ema", "raw")
SOFTMAXES = ("rows", "tokens")


@dataclasses.dataclass(frozen=True)
class MethodConfig(MethodFacts):
  """Which sets are generated in which order.

  ar: from left to right in one stream. any_order: one position at a time in a uniformly
  random order. set: one position at a time in the order of a position-offset schedule.
  general: that schedule's reveal times, rounded to a grid, group positions into sets.
  block: blocks from left to right. masked: all positions are one set.

  For `set` and `general`, at most `max_set_size` (N) positions are active at once and
  on average `prediction_budget` (C) of them are masked; None means N / 4, the paper's
  choice. With predict=active, an ablation of the paper's, one pass predicts only the
  positions that are active at one noise level; they see mask tokens before them.
  """

  name: str = "set"
  max_set_size: float = 8.0
  prediction_budget: float | None = None
  block_size: int = 4  # positions of a block, for `block` only
  grid: int = 32  # intervals that reveal times are rounded to, for `general` only
  noise: str = "full"  # of a general set: "full", or a noise "level" of its own
  predict: str = "all"  # set: every position, or only those "active" at a drawn level
  eos_last: bool = False  # in training, EOS targets come after all other targets


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where text comes from and how it is cut into sequences of `length` tokens.

  source: embedded, Python's own manual; text, files of one document each; lines, files
  of one document a line; jsonl, of one JSON object a line; tfds, a TensorFlow data set
  prepared in `directory`; prepared, what `set-diffusion prepare` wrote to `directory`;
  none, where it is left to the user. Files may be gzipped.

  cut: wrapped, documents are joined and cut; sentence, each document is a sequence of
  its own, cut off at `length` and padded; prompt, each record is one: a prompt, which
  is context, then a target. The first length // 2 tokens of either are kept.
  """

  source: str = "embedded"
  train_path: str | None = None  # of files: a path, or a pattern such as dir/*.txt
  validation_path: str | None = None  # None: hold out the end of train_path
  validation_fraction: float = 0.1  # of its characters; for cut=prompt of its records
  validation_documents: int | None = None  # or so many of its documents
  field: str = "text"  # jsonl, tfds: where a record's text is; "a,b" joins two
  prompt_field: str | None = None  # cut=prompt: where its prompt is
  prompt_prefix: str = ""  # cut=prompt: stands before each prompt
  target_prefix: str = ""  # cut=prompt: stands before each target
  name: str | None = None  # tfds: the data set, such as lm1b or scientific_papers/arxiv
  directory: str | None = None  # tfds: None: TFDS's own choice; prepared: where it is
  train_split: str = "train"  # tfds
  validation_split: str = "test"  # tfds
  detokenizer: str = "none"  # undoes the markup of a published corpus
  tokenizer: str = "byte"  # or a tokenizer.json or *.model; prepared: has its own
  streaming: bool = False  # tokenize while training: prepared as text, or tfds
  cut: str = "wrapped"
  length: int = 256  # tokens of a sequence, its BOS included
  bos: bool = True  # each sequence starts with BOS, as context that is not counted
  eos: str = "documents"  # end with EOS, which counts: or "sequences", "both", "none"

  @property
  def ends_documents(self) -> bool:
    """Whether each document ends with EOS."""
    return self.eos in ("documents", "both")

  @property
  def ends_sequences(self) -> bool:
    """Whether each sequence ends with EOS."""
    return self.eos in ("sequences", "both")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW after global-norm clipping, with an EMA of the parameters.

  `decay` says what `weight_decay` is a share of, at a step whose learning rate is lr:
  absolute, parameters shrink by lr * weight_decay, as in PyTorch and optax; relative,
  by lr / learning_rate * weight_decay, as in Composer's decoupled AdamW.

  After step n the EMA is d times itself plus 1 - d times the parameters, d = ema_decay.
  Without `ema_warmup`, as in the published runs, d^n of it are initial weights.
  """

  learning_rate: float = 3e-4  # the highest one
  schedule: str = "constant"  # after the warm-up: "constant" or "cosine"
  warmup_steps: int = 2500
  final_fraction: float = 0.0  # cosine: the last learning rate over the highest one
  beta1: float = 0.9
  beta2: float = 0.999
  epsilon: float = 1e-8
  weight_decay: float = 0.0
  decay: str = "absolute"
  clip_norm: float = 1.0
  ema_decay: float = 0.9999
  ema_warmup: bool = False  # d is at most (1 + n) / (10 + n) at step n


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """Cadence is in optimiser steps; `batch_size` is global, in sequences."""

  steps: int = 1_000_000
  batch_size: int = 512
  accumulate: int = 1  # micro-batches a step
  seed: int = 0
  gradient_variance: bool = False  # measure it: two more backward passes a step
  log_every: int = 100
  evaluate_every: int = 5000
  checkpoint_every: int = 5000
  checkpoint_minutes: float | None = None  # also so often, looked at with each log
  keep_latest: int = 2
  keep_best: int = 1


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each mesh axis; data = -1 takes all devices that are left.

  slice: TPU slices that a data centre network connects, each of which holds all
  parameters; -1: as many as there are.
  """

  slice: int = -1
  data: int = -1
  fsdp: int = 1
  tensor: int = 1


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
  """Monte Carlo evaluation. `draws` orders are drawn for each sequence.

  Of methods with noise levels, `levels` says how it is drawn what a set masks: counts,
  how many of its tokens, or uniform, a noise level. None: counts, but uniform where
  corruption.clip_width searches levels and for compat=setdlms.

  `softmax`: probabilities are those among all rows of the vocabulary, as published, or
  among rows that stand for tokens; rows that pad the matrix and holes of the tokenizer
  do not.
  """

  batch_size: int = 64
  draws: int = 1
  levels: str | None = None
  order: str = "drawn"  # "left_to_right", or a .npy file of positions, [L] or [n, L]
  stride: int | None = None  # tokens between windows; None: windows do not overlap
  sequences: int | None = None  # evaluate the first ones only; None: all
  seed: int = 0
  weights: str = "ema"  # or "raw"
  softmax: str = "rows"  # all of them, or "tokens": rows without a token are left out


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
  """How text is generated.

  `commit` says which candidates a step commits. `order`: the next ones of an order
  drawn from the training policy (inside a block or a masked text: of a random order,
  which is first-hitting sampling); `confidence`: those whose token is likeliest;
  `margin`: those whose likeliest token is furthest ahead of the next; `posterior`:
  those that the noise schedule reveals in one step of a grid; it is linear inside a
  block or a masked text.

  `candidates`: `confidence` and `margin` choose within a `window`, or among the next
  positions of the drawn `order`; then what is committed out of turn is read once all
  before it are there.

  `window`: for sets, the candidates of a step, counted from the first missing position
  (None: max_set_size); for masked diffusion, positions that are completed before the
  next ones begin (None: the whole text), counted from the first gap or, if `aligned`,
  from the start of the text.

  `drafts`: of sets with commit=order, so many tokens are drafted at once and verified;
  the text follows the same distribution as one token a step, in fewer steps.
  """

  commit: str = "order"
  tokens_per_step: float = 1.0  # on average; n tokens take ceil(n / this) steps
  threshold: float | None = None  # commit besides whatever is at least so likely
  window: int | None = None
  candidates: str = "window"
  aligned: bool = False
  drafts: int | None = None
  fresh_order: str = "position"  # tokens of one step are read so, or as "drawn"
  promotion: str = (
    "first"  # given tokens right of a gap are read "first", or when "passed"
  )
  temperature: float = 1.0  # 0: the likeliest token
  top_k: int | None = None  # draw from the k likeliest tokens
  top_p: float | None = None  # draw from the fewest tokens that hold this probability
  repetition_penalty: float = 1.0  # above 1: tokens of the text become less likely
  repetition_context: str = "left"  # or "both": what is to the right counts as well
  length_penalty: float = 1.0  # EOS grows by this power of the tokens after the start
  length_penalty_start: int = 0  # new tokens before length_penalty sets in
  minimum_length: int = 0  # new tokens before EOS is allowed
  forbidden: tuple[int, ...] = ()  # ids that are never generated
  stop_at_eos: bool = True
