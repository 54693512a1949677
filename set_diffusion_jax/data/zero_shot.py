"""The corpora of zero-shot perplexity, and how each is prepared.

The protocol of the BD3-LM scripts: each row of a corpus is detokenized and tokenized by
itself, rows follow one another without a separator, and each window is BOS, text, EOS,
with BOS not counted. The scripts drop the end of each of their shards, so their tokens
depend on a number of processes; here every token is counted once.
"""

import dataclasses
import pathlib
from typing import NamedTuple

from set_diffusion_jax.config import DataConfig
from set_diffusion_jax.errors import UserError


class ZeroShot(NamedTuple):
  """One corpus.

  Attributes:
    detokenizer: of data.detokenizer.
    field: of a JSON line.
    tfds: its name in TFDS, None where TFDS has none.
    tfds_field: of a TFDS record; title and description of AG News are joined.
    split: of TFDS, what is evaluated.
  """

  detokenizer: str
  field: str = "text"
  tfds: str | None = None
  tfds_field: str = "text"
  split: str = "validation"


_PAPERS = "scientific_papers"
ZERO_SHOT = {
  "ptb": ZeroShot("ptb", "sentence"),
  "wikitext2": ZeroShot("wikitext"),
  "wikitext103": ZeroShot("wikitext"),
  "lm1b": ZeroShot("lm1b", "text", "lm1b", "text", "test"),
  "lambada": ZeroShot("lambada", "text", "lambada", "passage", "test"),
  "ag_news": ZeroShot("none", "text", "ag_news_subset", "title,description", "test"),
  "pubmed": ZeroShot(_PAPERS, "article", f"{_PAPERS}/pubmed", "article"),
  "arxiv": ZeroShot(_PAPERS, "article", f"{_PAPERS}/arxiv", "article"),
}


def zero_shot_names(text: str) -> list[str]:
  """The corpora of a comma-separated list; `all` means every one."""
  names = list(ZERO_SHOT) if text == "all" else text.split(",")
  for name in names:
    if name not in ZERO_SHOT:
      known = ", ".join(ZERO_SHOT)
      raise UserError(f"--zero-shot={text}: {name!r} is not one of {known}, all")
  return names


def zero_shot_data(
  name: str, trained: DataConfig, folder: pathlib.Path | None
) -> DataConfig:
  """Where a corpus is and how it is cut, for a model trained with `trained`.

  Args:
    name: of ZERO_SHOT.
    trained: gives the length.
    folder: holds NAME.txt, one row of the corpus a line, or NAME.jsonl; both may be
      gzipped. Otherwise it is where TFDS has prepared the corpus; None: where TFDS
      prepares by default.
  """
  corpus = ZERO_SHOT[name]
  common = dataclasses.replace(
    trained,
    detokenizer=corpus.detokenizer,
    cut="wrapped",
    bos=True,
    eos="sequences",
    train_path=None,
    validation_path=None,
    prompt_field=None,
    prompt_prefix="",
    target_prefix="",
    streaming=False,
  )
  for suffix, source in (("txt", "lines"), ("jsonl", "jsonl")):
    for path in (f"{name}.{suffix}", f"{name}.{suffix}.gz"):
      if folder is not None and (folder / path).is_file():
        found = str(folder / path)
        return dataclasses.replace(
          common, source=source, validation_path=found, field=corpus.field
        )
  if corpus.tfds is None:
    raise UserError(
      f"--zero-shot-data={folder}: has no {name}.txt or {name}.jsonl, and TFDS does "
      "not have that corpus"
    )
  return dataclasses.replace(
    common,
    source="tfds",
    name=corpus.tfds,
    field=corpus.tfds_field,
    directory=None if folder is None else str(folder),
    validation_split=corpus.split,
  )
