"""`inspect --data`: what a training batch really looks like, before a run."""

import time

import jax.numpy as jnp
import numpy as np

from set_diffusion_jax import data
from set_diffusion_jax.config import Config
from set_diffusion_jax.diffusion.corruption import Batch
from set_diffusion_jax.diffusion.draws import TRAIN, stream_key, training_keys
from set_diffusion_jax.inputs import terminal
from set_diffusion_jax.likelihood.objective import Objective

_SECONDS = 2.0  # of reading, to measure its speed
# Kind of a slot -> what stands around its text, on a terminal and elsewhere.
_CONTEXT, _SEEN, _MASKED = range(3)
_COLOURS = {_CONTEXT: ("\x1b[36m", "\x1b[0m"), _MASKED: ("\x1b[7;31m", "\x1b[0m")}
_MARKS = {_CONTEXT: ("«", "»"), _MASKED: ("[", "]")}


def batch_figures(config: Config, rows: int, colour: bool) -> tuple[dict, str]:
  """The first batch of a configuration: figures, and text.

  Args:
    config: of the run that is planned.
    rows: how many are in the text.
    colour: whether the text is for a terminal.
  """
  corpus = data.load(config.data)
  size = config.train.batch_size
  batches = data.training_iterator(corpus.train, size, config.train.seed, 0, 1)
  examples = next(batches)
  vocabulary = corpus.tokenizer.vocabulary
  masked = _masked(config, examples, vocabulary)
  valid, context = examples["valid"], examples["context"]
  targets, lengths = valid & ~context, valid.sum(-1)
  figures = {
    "source": config.data.source,
    "tokenizer": corpus.tokenizer.name,
    "vocabulary": vocabulary.size,
    "rows_without_token": data.count(corpus.tokenizer.unused),
    "tokenizer_facts": data.facts(corpus.tokenizer),
    **{k: v for k, v in corpus.fingerprint.items() if k.endswith(("ences", "ments"))},
    "rows": size,
    "length": config.data.length,
    "targets": int(targets.sum()),
    "context": int((context & valid).sum()),
    "padding": int((~valid).sum()),
    "masked": int(masked.sum()),
    "shortest": int(lengths.min()),
    "mean_length": float(lengths.mean()),
    "longest": int(lengths.max()),
    "slots_per_second": _rate(batches, size * config.data.length),
  }
  for side in ("train", "validation"):
    if (cut := corpus.fingerprint.get(f"{side}_cut_off")) is not None:
      figures[f"{side}_cut_off"] = cut
  lines = _figure_lines(config, figures)
  lines += [f"note       {note}" for note in corpus.notes]
  for row in range(min(rows, size)):
    kinds = np.where(context[row], _CONTEXT, np.where(masked[row], _MASKED, _SEEN))
    counts = (valid[row].sum(), (context & valid)[row].sum(), masked[row].sum())
    lines.append("\n--- row {}: {} tokens, {} context, {} masked".format(row, *counts))
    used = valid[row]
    tokens = examples["tokens"][row][used]
    lines.append(render(tokens, kinds[used], corpus.tokenizer, colour))
  return figures, "\n".join(lines)


def _masked(config: Config, examples: data.Examples, vocabulary) -> np.ndarray:
  """Which tokens the first training step masks: bool [B, L]."""
  objective = Objective(config, None, vocabulary.mask, vocabulary.eos)
  if objective.one_stream:
    return np.zeros_like(examples["valid"])
  rows = jnp.arange(len(examples["tokens"]))
  batch = Batch(**{k: jnp.asarray(v) for k, v in examples.items()}, row=rows)
  keys = training_keys(stream_key(config.train.seed, TRAIN), 0, rows)
  clip = jnp.array([config.corruption.t_min, config.corruption.t_max])
  _, noise = objective.training_draws(batch, keys, clip)
  return np.asarray(noise.masked)


def _rate(batches, tokens: int) -> float:
  """Slots of batches a second, read without training."""
  start, steps = time.perf_counter(), 0
  while (seconds := time.perf_counter() - start) < _SECONDS:
    next(batches)
    steps += 1
  return steps * tokens / seconds


def _figure_lines(config: Config, f: dict) -> list[str]:
  slots = f["rows"] * f["length"]
  count = f.get("train_sequences", f.get("train_documents"))
  unit = "sequences" if "train_sequences" in f else "documents, cut on the way"
  padding = f"{f['padding']:,} padding ({f['padding'] / slots:.1%})"
  mean = f"on average {f['mean_length']:.1f}"
  return [
    f"source     {f['source']}",
    "tokenizer  " + "\n           ".join(f["tokenizer_facts"]),
    f"train      {count:,} {unit}; held out {f['validation_sequences']:,} sequences",
    f"batch      {f['rows']} x {f['length']}: {f['targets']:,} targets, "
    f"{f['context']:,} context, {padding}",
    f"lengths    {f['shortest']} to {f['longest']}, {mean}",
    f"masked     {f['masked']:,} targets, as {config.method.name} draws them",
    f"reading    {f['slots_per_second']:,.0f} slots/s",
    "marks      «context»  [masked]  otherwise seen as it is",
  ]


def render(tokens, kinds, tokenizer: data.Tokenizer, colour: bool) -> str:
  """Text of ids with each run of context and of masked tokens marked.

  Args:
    tokens: int [n] ids.
    kinds: int [n], what each slot is.
    tokenizer: of the ids.
    colour: whether a terminal shows it.
  """
  v, marks = tokenizer.vocabulary, _COLOURS if colour else _MARKS
  names: dict[int, str] = {}
  for kind in ("bos", "eos", "pad", "mask"):  # one id may be several
    names[getattr(v, kind)] = f"{names.get(getattr(v, kind), '')}<{kind.upper()}>"
  special = np.isin(tokens, list(names))
  change = np.flatnonzero(np.diff(kinds) | np.diff(special.astype(int)) | special[1:])
  text = []
  for run in np.split(np.arange(len(tokens)), change + 1):
    if not len(run):
      continue
    first, last = marks.get(int(kinds[run[0]]), ("", ""))
    ids = tokens[run]
    name = names.get(int(ids[0]))
    shown = (name or tokenizer.decode(ids)).replace("\n", "\\n")
    text.append(first + (terminal.shown(shown) if colour else shown) + last)
  return "".join(text)
