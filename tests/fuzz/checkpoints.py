"""Checkpoints that nobody should have sent, for `convert` and `inspect`."""

import contextlib
import functools
import json
import pathlib
import shutil

from set_diffusion_jax import cli
from tests.fuzz import bases, containers, links, models, mutate, results, sources
from tests.fuzz.check import Case

# Keys of other projects' config.json files.
_KEYS = """rope_parameters rope_local_base_freq partial_rotary_factor layer_types
sliding_window_pattern max_window_layers mlp_bias attn_logit_softcapping use_bias
logit_scale final_logit_softcapping quantization_config num_experts no_rope_layers
residual_multiplier embedding_multiplier attention_multiplier hidden_activation
activation_function tie_weights rotary_pct scale_embedding is_causal lm_head_bias
parallel_residual qk_layernorm rope_type auto_map time_conditioning causal
use_causal_mask sampling_eps_min sampling_eps_max mdlm_loss_scale k b""".split()


def header(rng, home, box) -> Case:
  source = sources.copy(home, box, rng.choice(["dit", "qwen3", "shards"]))
  file = rng.choice(sorted(source.glob("*.safetensors")))
  data, what = containers.safetensors(rng, file.read_bytes())
  return sources.changed("safetensors header", rng, box, source, file, data, what)


def body(rng, home, box) -> Case:
  source = sources.copy(home, box, rng.choice(["dit", "qwen3", "shards"]))
  file = rng.choice(sorted(source.glob("*.safetensors")))
  data, what = mutate.change_file(rng, file.read_bytes())
  return sources.changed("safetensors bytes", rng, box, source, file, data, what)


def index(rng, home, box) -> Case:
  source = sources.copy(home, box, "shards")
  file = source / "model.safetensors.index.json"
  act = rng.randrange(8)
  data, what = file.read_bytes(), "as it was"
  if act < 5:
    more = ["../x", "a.safetensors", *models.SHARDS]
    change = mutate.change_json(rng, json.loads(data), more)
    values, what = change.value, change.what
    if rng.random() < 0.3 and isinstance(values, dict) and act == 0:
      weights = values.get("weight_map")
      if isinstance(weights, dict) and weights:
        name = rng.choice(list(weights))
        weights[name] = rng.choice(
          ["../../secret/model.safetensors", "/etc/passwd", "config.json", ".", ""]
        )
        what += f"; {name} is in {weights[name]!r}"
    data = mutate.dumps(values).encode()
  elif act == 5:
    data, what = mutate.change_file(rng, data)
  elif act == 6:
    lost = source / rng.choice(models.SHARDS)
    lost.unlink()
    what = f"{lost.name} is not there"
  else:
    first, second = (source / name for name in models.SHARDS)
    content = first.read_bytes(), second.read_bytes()
    second.write_bytes(content[0])
    first.write_bytes(content[rng.randrange(2)])
    what = "the files have changed places"
  return sources.changed("index and shards", rng, box, source, file, data, what)


def _pickle(kind, rng, home, box, change) -> Case:
  base = rng.choice(["pickled", "lightning"])
  source = sources.copy(home, box, base)
  file = source / ("pytorch_model.bin" if base == "pickled" else "last.ckpt")
  data, what = change(rng, file.read_bytes())
  if rng.random() < 0.2 and base == "lightning":
    file = file.rename(file.with_suffix(rng.choice([".pt", ".pth", ".bin"])))
  given = source if base == "pickled" else file
  wanted = functools.partial(results.pickled, file)
  return sources.changed(
    kind, rng, box, source, file, data, what, given=given, wanted=wanted
  )


def pickle(rng, home, box) -> Case:
  said = []

  def edit(program):
    program, what = containers.pickle_program(rng, program)
    said.append(what)
    return program

  def change(rng, data):
    return containers.edit_member(data, "archive/data.pkl", edit), said[0]

  return _pickle("pickle", rng, home, box, change)


def archive(rng, home, box) -> Case:
  change = containers.archive if rng.random() < 0.7 else mutate.change_file
  return _pickle("zip container", rng, home, box, change)


@functools.cache
def _description(folder: pathlib.Path) -> dict:
  from set_diffusion_jax.convert import describe

  return json.loads(json.dumps(describe(folder)))


def _same(change: mutate.Change) -> bool:
  """Whether the new value is the old one, perhaps in another spelling, as 0 and -0."""
  if isinstance(change.new, mutate.Raw):
    with contextlib.suppress(ValueError, RecursionError):
      return json.loads(change.new.text) == change.old
  return change.new == change.old


def config(rng, home, box) -> Case:
  base = rng.choice(["dit", "qwen3", "qwen3", "older"])
  source, file = sources.copy(home, box, base), box / "source" / "config.json"
  data, what, change = sources.json_file(rng, file, _KEYS)
  if change is not None and rng.random() < 0.1:
    data = b'{"hf_config": ' + data + b"}"
  if rng.random() < 0.4:
    return sources.changed("config.json", rng, box, source, file, data, what)
  file.write_bytes(data)
  written = box / "out" / "description.json"
  arguments = ["inspect", str(source), f"--output={written}"]
  changed = change is not None and change.new is not None and not _same(change)
  key = change.key if change else ""

  def right(_):
    # "" and [] and false stand for nothing where nothing stood.
    known = changed and (change.old is not None or bool(change.new))
    base_description = _description(home / base)
    return results.described(written.read_text(), base_description, key, known)

  names = ("config.json", key or "config.json")
  return sources.case("config.json", what, box, arguments, names, (written,), right)


def generation(rng, home, box) -> Case:
  source = sources.copy(home, box, "dit")
  file = source / "generation_config.json"
  data, what, _ = sources.json_file(rng, file, ["top_k", "num_beams", "stop_strings"])
  return sources.changed("generation_config.json", rng, box, source, file, data, what)


def _orbax(kind, rng, box, source, file, data, what, wanted) -> Case:
  step = source / "checkpoints" / "0"
  given = step if rng.random() < 0.2 else source
  return sources.changed(
    kind, rng, box, source, file, data, what, given=given, orbax=True, wanted=wanted
  )


def meta(rng, home, box) -> Case:
  source = sources.copy(home, box, rng.choice(["orbax", "zarr"]))
  step = source / "checkpoints" / "0"
  places = ["meta/metadata", "meta/metadata", "state/_METADATA", "_CHECKPOINT_METADATA"]
  file = step / rng.choice(places)
  data, what, _ = sources.json_file(
    rng, file, ["schedule", "buffers", "files", "source"]
  )
  same = lambda: results.made("dit")
  if rng.random() < 0.08:
    name = rng.choice(["²", "٣", "9" * 30, "007", "-1", "1e3", "0x1"])
    (source / "checkpoints" / name).mkdir()
    data, what = file.read_bytes(), f"a step is called {name!r}"
  return _orbax("meta of Orbax", rng, box, source, file, data, what, same)


def arrays(rng, home, box) -> Case:
  base = rng.choice(["orbax", "zarr", "zarr3"])
  source = sources.copy(home, box, base)
  state = source / "checkpoints" / "0" / "state"
  files = sorted(p for p in state.rglob("*") if p.is_file() and p.name != "_METADATA")
  described = [p for p in files if p.name in (".zarray", "zarr.json", "manifest.ocdbt")]
  file = rng.choice(described if rng.random() < 0.6 else files)
  same = lambda: results.made("dit") if file in described else None
  if file.name in (".zarray", "zarr.json"):
    keys = ["dimension_separator", "filters", "storage_transformers", "codecs"]
    data, what, _ = sources.json_file(rng, file, keys)
    same = lambda: None
  else:
    data, what = mutate.change_file(rng, file.read_bytes())
  if base == "orbax":
    same = lambda: results.made("dit")  # its parts have checksums
  return _orbax("arrays of Orbax", rng, box, source, file, data, what, same)


def tokenizer(rng, home, box) -> Case:
  base = rng.choice(["dit", "qwen3"])
  source = sources.copy(home, box, base)
  act = rng.randrange(10)
  if act < 6:
    file = source / "tokenizer.json"
    keys = ["normalizer", "byte_fallback", "continuing_subword_prefix", "dropout"]
    data, what, _ = sources.json_file(rng, file, keys)
  elif act < 8:
    file = source / "tokenizer_config.json"
    data, what, _ = sources.json_file(
      rng, file, ["added_tokens_decoder", "chat_template"]
    )
  else:
    names = ["special_tokens_map.json", "vocab.txt", "merges.txt", "added_tokens.json"]
    file = source / rng.choice([*names, "tokenizer.model", "chat_template.jinja"])
    model = home / "texts" / "tokenizer.model"
    good = b'{"a": 1}\n' * 3
    if file.name == "tokenizer.model" and model.exists():
      (source / "tokenizer.json").unlink()
      good = model.read_bytes()
    data, what = mutate.change_file(rng, good)
  return sources.changed("tokenizer files", rng, box, source, file, data, what)


def linked(rng, home, box) -> Case:
  """Links, pipes and devices in place of files."""
  source = sources.copy(home, box, rng.choice(["dit", "shards", "pickled", "zarr"]))
  what, file, wrong = links.plant(rng, box, source)
  orbax = (source / "checkpoints").exists()
  arguments, writes, right = sources.verb(rng, box, source, orbax, lambda: None)
  # What is no more than left out: `inspect` reads no values, and few need this file.
  unread = arguments[0] == "inspect" and file is not None and "state" in file.parts
  # Of a work directory `inspect` looks at the step alone.
  unread |= arguments[0] == "inspect" and orbax and file.name == "config.json"
  optional = file is not None and file.name == "tokenizer_config.json"
  if unread or (optional and "leads out" not in what and "secret" not in what):
    right = None
  elif wrong:
    right = lambda _: f"{what}, but it is accepted"
  return sources.case("links", what, box, arguments, (), writes, right)


def named(rng, home, box) -> Case:
  """Names that a URL, a pattern or a terminal would take for something else."""
  base = rng.choice(["dit", "orbax", "zarr", "shards"])
  first, second = links.name(rng), links.name(rng)
  (box / "out").mkdir()
  source, destination = box / "source", box / "out" / second
  try:
    source = shutil.copytree(home / base, box / first)
  except OSError:  # the file system does not have such names
    shutil.rmtree(box / first, ignore_errors=True)
    shutil.copytree(home / base, source)
  orbax = base in ("orbax", "zarr")
  wanted = lambda: results.made("qwen3" if base == "shards" else "dit")
  right = lambda _: results.converted(destination, wanted(), not orbax)
  arguments = ["convert", str(source), str(destination)]
  what = f"{base} is called {source.name!r}, the destination {second!r}"
  names = (source.name, second, "out", "destination")
  return sources.case("names", what, box, arguments, names, [destination], right)


KINDS = {
  "safetensors header": header,
  "safetensors bytes": body,
  "index and shards": index,
  "pickle": pickle,
  "zip container": archive,
  "config.json": config,
  "generation_config.json": generation,
  "meta of Orbax": meta,
  "arrays of Orbax": arrays,
  "tokenizer files": tokenizer,
  "links": linked,
  "names": named,
}
# Of so many inputs, how many are of each kind.
SHARES = dict.fromkeys(KINDS, 2) | {
  "config.json": 4,
  "pickle": 4,
  "zip container": 3,
  "tokenizer files": 3,
  "generation_config.json": 1,
  "links": 1,
  "names": 1,
}


def good(home: pathlib.Path) -> list:
  """What must be accepted before anything is mutated."""
  runs = []
  for base in ("dit", "qwen3", "older"):
    _description(home / base)
  for base in bases.CHECKPOINTS:
    source, result = str(home / base), str(home / "warm" / base)
    runs.append(functools.partial(cli.main, ["inspect", source]))
    runs.append(functools.partial(cli.main, ["convert", source, result]))
  return runs
