"""The good inputs that mutations start from: small, and made by code."""

import gzip
import io
import json
import pathlib
import shutil

import tensorstore as ts

from set_diffusion_jax import data
from set_diffusion_jax.config import Config
from set_diffusion_jax.convert import convert
from tests import tiny
from tests.convert_files import safetensors_bytes, torch_bytes
from tests.fuzz import models

WORDS = "the cat sat on a mat and then it ran far away from here to there".split()
# What can be inspected and converted as it is made.
CHECKPOINTS = (
  *("dit", "qwen3", "shards", "pickled", "older", "lightning/last.ckpt"),
  *("orbax", "zarr", "zarr3"),
)


def tokenizer() -> dict:
  """A tokenizer.json of words: ids 0 to 59, then BOS, EOS, padding and [MASK]."""
  words = [*dict.fromkeys(WORDS), *(f"w{i}" for i in range(60))][:60]
  special = ("<s>", "</s>", "<pad>", "<mask>")
  added = [
    {
      **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
      "id": 60 + number,
      "content": text,
      "special": True,
    }
    for number, text in enumerate(special)
  ]
  vocabulary = {word: number for number, word in enumerate([*words, *special])}
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": added,
    "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": words[0]},
  }


def sentencepiece_model() -> bytes | None:
  """A small tokenizer.model, where the package is installed."""
  try:
    import sentencepiece
  except ImportError:
    return None
  out = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([" ".join(WORDS)] * 20),
    model_writer=out,
    vocab_size=24,
    minloglevel=2,
  )
  return out.getvalue()


def write_json(path: pathlib.Path, value) -> None:
  path.write_text(json.dumps(value))


def _published(folder: pathlib.Path, config: dict) -> None:
  folder.mkdir(parents=True)
  write_json(folder / "config.json", config)
  write_json(folder / "tokenizer.json", tokenizer())
  write_json(folder / "tokenizer_config.json", {"tokenizer_class": "X", "bos": "<s>"})


def _index(folder: pathlib.Path, files: dict[str, list[str]], name: str) -> None:
  where = {tensor: file for file, names in files.items() for tensor in names}
  index = {"metadata": {"total_size": 1}, "weight_map": where}
  write_json(folder / f"{name}.index.json", index)


def make(home: pathlib.Path) -> None:
  """Writes every base below a folder; each is read without complaint."""
  dit, qwen3 = models.tensors("dit"), models.tensors("qwen3")
  _published(home / "dit", models.DIT_CONFIG)
  (home / "dit" / "model.safetensors").write_bytes(safetensors_bytes(dit))
  write_json(home / "dit" / "generation_config.json", models.GENERATION)

  _published(home / "qwen3", models.QWEN3_CONFIG)
  (home / "qwen3" / "model.safetensors").write_bytes(safetensors_bytes(qwen3))
  _published(home / "shards", models.QWEN3_CONFIG)
  names = sorted(qwen3)
  files = {models.SHARDS[0]: names[:12], models.SHARDS[1]: names[12:]}
  for file, part in files.items():
    content = safetensors_bytes({name: qwen3[name] for name in part})
    (home / "shards" / file).write_bytes(content)
  _index(home / "shards", files, "model.safetensors")

  _published(home / "pickled", models.DIT_CONFIG)
  (home / "pickled" / "pytorch_model.bin").write_bytes(torch_bytes(dit))
  _published(home / "older", models.OLDER_CONFIG)
  (home / "older" / "model.safetensors").write_bytes(safetensors_bytes(dit))
  _published(home / "lightning", models.DIT_CONFIG)
  state = {"state_dict": dit, "ema": {"shadow_params": list(dit.values())}, "epoch": 3}
  (home / "lightning" / "last.ckpt").write_bytes(torch_bytes(state))

  convert(home / "dit", home / "orbax")
  for driver in ("zarr", "zarr3"):
    _plain_arrays(home / "orbax", home / driver, driver)
  _texts(home)


def _plain_arrays(source: pathlib.Path, folder: pathlib.Path, driver: str) -> None:
  """The same checkpoint with each array in a folder of plain files."""
  shutil.copytree(source, folder)
  state = folder / "checkpoints" / "0" / "state"
  tree = json.loads((state / "_METADATA").read_text())
  shutil.rmtree(state / "d")
  (state / "manifest.ocdbt").unlink()
  shutil.rmtree(state / "ocdbt.process_0", ignore_errors=True)
  tree |= {"use_ocdbt": False, "use_zarr3": driver == "zarr3"}
  write_json(state / "_METADATA", tree)
  base = f"file://{source.absolute()}/checkpoints/0/state/"
  for entry in tree["tree_metadata"].values():
    name = ".".join(key["key"] for key in entry["key_metadata"])
    kvstore = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
    array = ts.open({"driver": "zarr", "kvstore": kvstore}, read=True).result()
    values = array.read().result()
    spec = {
      "driver": driver,
      "kvstore": {"driver": "file", "path": f"{state}/{name}/"},
      "metadata": {"shape": list(values.shape)},
      "dtype": array.dtype.name,
      "create": True,
    }
    if driver == "zarr":
      spec["metadata"] |= {"chunks": list(values.shape), "compressor": None}
    ts.open(spec).result().write(values).result()


LINES = [f"{number} {' '.join(WORDS[number % 9 :])}." for number in range(40)]


def _texts(home: pathlib.Path) -> None:
  folder = home / "texts"
  folder.mkdir()
  plain = "\n".join(LINES) + "\n"
  records = [{"text": f"{line}\n{line}", "prompt": line[:9], "n": 1} for line in LINES]
  lines = "".join(json.dumps(record) + "\n" for record in records)
  (folder / "text.txt").write_text(plain)
  (folder / "text.jsonl").write_text(lines)
  for name in ("text.txt", "text.jsonl"):
    content = (folder / name).read_bytes()
    (folder / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
  write_json(folder / "tokenizer.json", tokenizer())
  model = sentencepiece_model()
  if model is not None:
    (folder / "tokenizer.model").write_bytes(model)
  (home / "config.py").write_text(tiny.CONFIG.replace("PATH", str(folder / "text.txt")))
  config = data_config(source="jsonl", train_path=str(folder / "text.jsonl"))
  data.prepare(config, home / "tokens", shard=900)
  data.prepare(config, home / "stored", text=True, shard=900)


def data_config(**fields):
  """A small `DataConfig`."""
  settings = {"length": 16, "validation_fraction": 0.1, **fields}
  return Config.from_dict({"data": settings}).data
