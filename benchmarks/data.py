"""Tokens a second that training reads, on one core.

Prepared blocks at several lengths, and documents tokenized on the way next to the
tokenizer alone. The text is made up: words of a Zipf-like vocabulary, with a byte-level
BPE trained on a part of it.
"""

import json
import os
import pathlib
import platform
import tempfile
import time

import numpy as np

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


def rates(tokens: int, wall: float, cpu: float) -> dict:
  """Tokens a second; a second of CPU is what counts where others use the machine."""
  return {"per_second": tokens / wall, "per_cpu_second": tokens / cpu}


def reading(train, batch_size: int, length: int, seconds: float) -> dict:
  """Rates of a training iterator, once what it reads ahead is full."""
  iterator = data.training_iterator(train, batch_size, 0, 0, 1)
  for _ in range(2):
    wall, cpu, steps = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < seconds:
      next(iterator)
      steps += 1
    spent = time.perf_counter() - wall, time.process_time() - cpu
  return rates(steps * batch_size * length, *spent)


def encoding(texts: list[str], tokenizer) -> dict:
  """Rates of the tokenizer alone, one text at a time."""
  wall, cpu = time.perf_counter(), time.process_time()
  tokens = sum(len(tokenizer.encode(text)) for text in texts)
  return rates(tokens, time.perf_counter() - wall, time.process_time() - cpu)


def main(characters: int = 20_000_000, seconds: float = _SECONDS) -> dict:
  """Measures on one core."""
  os.environ["TOKENIZERS_PARALLELISM"] = "false"
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  figures: dict = {"machine": platform.platform(), "wanted": WANTED}
  with tempfile.TemporaryDirectory(prefix="data-") as name:
    folder = pathlib.Path(name)
    config = write_corpus(folder, characters)
    wall, cpu = time.perf_counter(), time.process_time()
    side = data.prepare(config, folder / "tokens")["sides"]["train"]
    spent = time.perf_counter() - wall, time.process_time() - cpu
    figures["prepare"] = rates(side["tokens"], *spent)
    figures["bytes_per_token"] = side["text_bytes"] / side["tokens"]
    for length in LENGTHS:
      for eos in ("documents", "none"):
        one = _config(config, folder / "tokens", eos=eos, length=length)
        found = reading(data.load(one).train, 64, length, seconds)
        figures[f"prepared_{length}_eos_{eos}"] = found
    data.prepare(config, folder / "text", text=True)
    corpus = data.load(_config(config, folder / "text", length=1024, streaming=True))
    texts = corpus.train.documents
    texts = [texts[i] for i in range(min(2000, len(texts)))]
    alone = figures["tokenizer_alone"] = encoding(texts, corpus.tokenizer)
    streamed = figures["streaming_1024"] = reading(corpus.train, 8, 1024, seconds)
    figures["streaming_ratio"] = streamed["per_cpu_second"] / alone["per_cpu_second"]
  return figures


def _config(config: DataConfig, folder: pathlib.Path, **fields) -> DataConfig:
  values = {**vars(config), "source": "prepared", "directory": str(folder), **fields}
  return DataConfig(**values)
