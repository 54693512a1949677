"""Tokens a second that training reads, on one core.

Prepared blocks at several lengths, and documents tokenized on the way next to the
tokenizer alone. The text is made up: words of a Zipf-like vocabulary, with a byte-level
BPE trained on a part of it.
"""

import json
import os
import pathlib
import tempfile
import time

import numpy as np

from benchmarks import measure
from set_diffusion_jax import data
from set_diffusion_jax.config import DataConfig

WANTED = 2_000_000  # tokens a second from prepared blocks
LENGTHS = (128, 1024)
_SECONDS = 5.0


def write_corpus(folder: pathlib.Path, characters: int) -> DataConfig:
  """Documents of about 500 words in a JSONL file, and their tokenizer."""
  rng = np.random.default_rng(0)
  letters = np.array(list("etaoinshrdlucmfwypvbgkqjxz"))
  words = ["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(20_000)]
  documents, size = [], 0
  while size < characters:
    ranks = np.minimum(rng.zipf(1.3, 500), len(words)) - 1
    documents.append(" ".join(words[rank] for rank in ranks))
    size += len(documents[-1])
  path = folder / "corpus.jsonl"
  path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
  (folder / "tokenizer.json").write_text(data.train_bpe(documents[:300], 8192))
  return DataConfig(
    source="jsonl", train_path=str(path), tokenizer=str(folder), validation_documents=50
  )


class Timer:
  """Seconds since it was made, by the clock and of this process's CPU.

  A second of CPU is what counts where others use the machine.
  """

  def __init__(self):
    self._wall, self._cpu = time.perf_counter(), time.process_time()

  @property
  def wall(self) -> float:
    """By the clock."""
    return time.perf_counter() - self._wall

  def row(self, name: str, shape: str, tokens: int) -> dict:
    """Tokens a second until now."""
    cpu = time.process_time() - self._cpu
    wall = [self.wall]
    return measure.row(
      name, shape, "tokens/s", tokens, wall, tokens_per_cpu_second=tokens / cpu
    )


def reading(name: str, train, batch_size: int, length: int, seconds: float) -> dict:
  """The row of a training iterator, once what it reads ahead is full."""
  iterator = data.training_iterator(train, batch_size, 0, 0, 1)
  for _ in range(2):
    timer, steps = Timer(), 0
    while timer.wall < seconds:
      next(iterator)
      steps += 1
    row = timer.row(name, f"L={length}", steps * batch_size * length)
  return row


def encoding(texts: list[str], tokenizer) -> dict:
  """The row of the tokenizer alone, one text at a time."""
  timer = Timer()
  tokens = sum(len(tokenizer.encode(text)) for text in texts)
  return timer.row("tokenizer alone", "", tokens)


def main(characters: int = 20_000_000, seconds: float = _SECONDS) -> dict:
  """Measures on one core; prints a row of each figure."""
  os.environ["TOKENIZERS_PARALLELISM"] = "false"
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  table = measure.Table()
  with tempfile.TemporaryDirectory(prefix="data-") as name:
    folder = pathlib.Path(name)
    config = write_corpus(folder, characters)
    timer = Timer()
    side = data.prepare(config, folder / "tokens")["sides"]["train"]
    table.add(timer.row("prepare", "", side["tokens"]))
    for length in LENGTHS:
      for eos in ("documents", "none"):
        one = _config(config, folder / "tokens", eos=eos, length=length)
        train = data.load(one).train
        table.add(reading(f"prepared, eos={eos}", train, 64, length, seconds))
    data.prepare(config, folder / "text", text=True)
    corpus = data.load(_config(config, folder / "text", length=1024, streaming=True))
    texts = corpus.train.documents
    texts = [texts[i] for i in range(min(2000, len(texts)))]
    alone = encoding(texts, corpus.tokenizer)
    table.add(alone)
    streamed = reading("streaming", corpus.train, 8, 1024, seconds)
    per_cpu = "tokens_per_cpu_second"
    share = streamed[per_cpu] / alone[per_cpu]
    table.add(streamed | {"share_of_tokenizer": share}, f"{share:.2f} of the tokenizer")
  return table.report(
    wanted=WANTED, bytes_per_token=side["text_bytes"] / side["tokens"]
  )


def _config(config: DataConfig, folder: pathlib.Path, **fields) -> DataConfig:
  values = {**vars(config), "source": "prepared", "directory": str(folder), **fields}
  return DataConfig(**values)
