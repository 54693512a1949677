"""Round trips: what is written back is what was read, bit for bit."""

import dataclasses
import json
import math

import grain
import jax
import numpy as np
import pytest
import safetensors.numpy

from set_diffusion_jax import sharding
from set_diffusion_jax.config import Config, MeshConfig
from set_diffusion_jax.convert import convert, describe, description_text, layout
from set_diffusion_jax.convert.layout import parameters
from set_diffusion_jax.convert.published import published_config
from set_diffusion_jax.convert.qwen3 import Backbone
from set_diffusion_jax.convert.settings import read_settings
from set_diffusion_jax.convert.source import open_source
from set_diffusion_jax.data import Vocabulary
from set_diffusion_jax.diffusion.order import position_offset
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.model import build_network
from set_diffusion_jax.storage import workdir
from set_diffusion_jax.storage.checkpoint import Checkpoints, abstract
from tests import tiny
from tests.convert_files import cast, safetensors_bytes
from tests.golden import ROOT, Golden

MODELS = sorted(path.parent.name for path in ROOT.glob("models/*/model.safetensors"))
DTYPES = ("float32", "bfloat16", "float16")


def reference(name, folder, dtype="float32", **changes):
  """A published directory: the reference's tensors and its unwrapped config.json."""
  golden = Golden(name)
  folder.mkdir(parents=True)
  tensors = {key: cast(value, dtype) for key, value in golden.tensors.items()}
  (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
  values = published(name)
  values.update({"torch_dtype": dtype, **changes})
  (folder / "config.json").write_text(json.dumps(values))
  backbone = golden.settings.get("qwen3_config")
  if backbone is not None:
    (folder / "backbone_config.json").write_text(json.dumps(backbone))
  return folder


def published(name):
  return json.loads((ROOT / "models" / name / "config.json").read_text())["hf_config"]


def stored(folder):
  """Every tensor of a written directory as (dtype, shape, bytes)."""
  tensors = {}
  for path in sorted(folder.glob("*.safetensors")):
    found = safetensors.deserialize(path.read_bytes())
    tensors.update({n: (t["dtype"], t["shape"], bytes(t["data"])) for n, t in found})
  return tensors


def restored(workdir, dtypes=None):
  """What Orbax itself restores, by path, in the stored dtypes or those given."""
  source = open_source(workdir)
  tree: dict = {}
  for p in source.parameters:
    *groups, leaf = p.path.split("/")
    node = tree
    for group in groups:
      node = node.setdefault(group, {})
    node[leaf] = jax.ShapeDtypeStruct(p.shape, dtypes or source.dtypes[p.path])
  layout = sharding.state_shardings(tree, sharding.make_mesh(MeshConfig()))
  with Checkpoints(workdir / "checkpoints") as checkpoints:
    assert checkpoints.steps == [0]
    meta = checkpoints.restore_meta(0)
    return checkpoints.restore_weights(0, meta, "params", abstract(tree, layout))


def assert_same_tree(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    x, y = np.asarray(x), np.asarray(y)
    assert x.dtype == y.dtype and x.tobytes() == y.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_there_and_back(tmp_path, name, dtype):
  first = reference(name, tmp_path / "first", dtype)
  report = convert(first, tmp_path / "orbax", verify=True)
  assert report.dtypes == [dtype] and report.verified
  convert(tmp_path / "orbax", tmp_path / "second", verify=True)
  assert stored(tmp_path / "second") == stored(first)
  read = lambda folder: json.loads((folder / "config.json").read_text())
  assert read(tmp_path / "second") == read(first)

  convert(tmp_path / "second", tmp_path / "again", verify=True)
  assert_same_tree(restored(tmp_path / "again"), restored(tmp_path / "orbax"))


@pytest.mark.reference
@pytest.mark.parametrize("name", MODELS)
def test_orbax_restores_the_reference_weights(tmp_path, name):
  """The parameters with which test_golden_models reproduces the published logits."""
  golden = Golden(name)
  convert(reference(name, tmp_path / "first"), tmp_path / "orbax")
  assert_same_tree(restored(tmp_path / "orbax"), golden.params())
  source, wanted = open_source(tmp_path / "orbax"), golden.config()
  plain = dataclasses.replace(
    wanted.model, norm_epsilon=source.config.model.norm_epsilon
  )
  assert source.config.model == (
    plain if source.config.model.backbone == "dit" else wanted.model
  )
  assert source.config.data.length == wanted.data.length
  assert source.config.data.bos == wanted.data.bos


def test_file_is_the_published_one_byte_for_byte(tmp_path):
  name = "setdlm_dit_adaln"
  convert(ROOT / "models" / name, tmp_path / "orbax")
  convert(tmp_path / "orbax", tmp_path / "back")
  original = (ROOT / "models" / name / "model.safetensors").read_bytes()
  assert (tmp_path / "back" / "model.safetensors").read_bytes() == original


@pytest.mark.parametrize("backbone", ["dit", "qwen3"])
@pytest.mark.parametrize("adaln", [False, True])
def test_layout_has_exactly_the_parameters_of_the_model(backbone, adaln):
  for tied in {False, backbone == "qwen3"}:
    heads = {"kv_heads": 1, "head_size": 6} if backbone == "qwen3" else {}
    model = {"layers": 2, "width": 16, "heads": 2, "ffn": 24, "tied": tied, **heads}
    model |= {"backbone": backbone, "adaln": adaln and backbone == "dit"}
    config = Config.from_dict({"model": model})
    shapes = jax.eval_shape(build_network(config.model, 11).init, jax.random.key(0))
    flat = jax.tree_util.tree_leaves_with_path(shapes)
    wanted = {
      jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
      for path, leaf in flat
    }
    assert {p.path: p.shape for p in parameters(config.model, 11)} == wanted


@pytest.mark.parametrize("name", ["setdlm_dit_adaln", "setdlm_qwen3"])
def test_pieces_of_any_size(tmp_path, monkeypatch, name):
  first = reference(name, tmp_path / "first")
  convert(first, tmp_path / "whole")
  monkeypatch.setattr(layout, "PIECE_BYTES", 600)
  convert(first, tmp_path / "orbax", verify=True)
  convert(tmp_path / "whole", tmp_path / "back", verify=True)
  assert_same_tree(restored(tmp_path / "orbax"), restored(tmp_path / "whole"))
  assert stored(tmp_path / "back") == stored(first)


@pytest.mark.parametrize("shard_size", [1, 20_000, 10**9])
def test_shards(tmp_path, shard_size):
  first = reference("setdlm_dit", tmp_path / "first")
  convert(first, tmp_path / "orbax")
  convert(tmp_path / "orbax", tmp_path / "back", shard_size=shard_size, verify=True)
  assert stored(tmp_path / "back") == stored(first)
  files = sorted(path.name for path in (tmp_path / "back").glob("*.safetensors"))
  if shard_size == 10**9:
    assert files == ["model.safetensors"]
    return
  index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
  assert sorted(set(index["weight_map"].values())) == files
  assert index["metadata"]["total_size"] == sum(
    math.prod(shape) * 4 for _, shape, _ in stored(first).values()
  )
  if shard_size == 20_000:
    assert 1 < len(files) < len(stored(first))
  convert(tmp_path / "back", tmp_path / "again", verify=True)
  assert_same_tree(restored(tmp_path / "again"), restored(tmp_path / "orbax"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_cast_on_the_way(tmp_path, dtype):
  first = reference("setdlm_dit", tmp_path / "first")
  convert(first, tmp_path / "narrow", dtype=dtype, verify=True)
  convert(first, tmp_path / "orbax")
  convert(tmp_path / "orbax", tmp_path / "back", dtype=dtype, verify=True)
  convert(tmp_path / "narrow", tmp_path / "same")
  wanted = reference("setdlm_dit", tmp_path / "wanted", dtype)
  for folder in ("back", "same"):
    assert stored(tmp_path / folder) == stored(wanted)
    values = json.loads((tmp_path / folder / "config.json").read_text())
    assert values["torch_dtype"] == dtype
  # Training and evaluation ask for float32: Orbax widens on restoring.
  wide = jax.tree.leaves(restored(tmp_path / "narrow", np.float32))
  assert {leaf.dtype.name for leaf in wide} == {"float32"}


@pytest.mark.parametrize("name", MODELS)
def test_settings_survive_without_the_published_file(tmp_path, name):
  """As of weights that were trained here: a new config.json that means the same."""
  source = open_source(reference(name, tmp_path / "first"))
  values = published_config(source.config, source.vocabulary, "float32")
  shapes = {n: p.tensor_shape for p in source.parameters for n in p.names()}
  backbone = None if source.qwen3 is None else Backbone(tmp_path, source.qwen3)
  again = read_settings(tmp_path / "config.json", values, shapes, backbone)
  assert again.vocabulary == source.vocabulary
  assert again.config == source.config
  assert values.keys() - {"mdlm_loss_scale"} == published(name).keys() - {
    "transformers_version"
  }


def test_schedules_of_the_reference(tmp_path):
  """S, S_max and the given k or b name the recorded width and power."""
  configs = json.loads((ROOT / "noise" / "configs.json").read_text())
  seen = 0
  for name, arguments in configs.items():
    path = ROOT / "noise" / f"{name}.npz"
    if "staggered" not in name or not path.exists():
      continue
    if arguments["block_size"] != arguments["length"]:
      continue
    sizes = ("length", "block_size", "eval_block_size")
    values = published("setdlm_dit") | dict.fromkeys(sizes, arguments["length"])
    target = values["noise_config"]["_target_"]
    values["noise_config"] = {"_target_": target, **arguments}
    source = open_source(reference("setdlm_dit", tmp_path / name))
    shapes = {n: p.tensor_shape for p in source.parameters for n in p.names()}
    config = read_settings(tmp_path, values, shapes).config
    recorded = np.load(path)
    seen += 1
    if config.method.name == "any_order":
      assert recorded["b"] == 1
      continue
    schedule = position_offset(config.method, config.data.length)
    assert schedule.width == pytest.approx(float(recorded["b"]), rel=1e-12)
    assert schedule.power == pytest.approx(float(recorded["k"]), rel=1e-12)
    # And back: what is written means the same schedule.
    values = published_config(config, Vocabulary(64, 60, 61, 62, 63), "float32")
    again = read_settings(tmp_path, values, shapes).config
    schedule = position_offset(again.method, again.data.length)
    assert schedule.width == pytest.approx(float(recorded["b"]), rel=1e-12)
    assert schedule.power == pytest.approx(float(recorded["k"]), rel=1e-12)
  assert seen >= 6


@pytest.mark.parametrize("active", [4, 8, 32])
def test_look_ahead_variants(tmp_path, active):
  """S = 4 with S, 2 S or the whole length as the positions that are active."""
  folder = reference("setdlm_dit", tmp_path / "first")
  values = published("setdlm_dit")
  values["noise_config"]["max_block_size"] = active
  (folder / "config.json").write_text(json.dumps(values))
  config = open_source(folder).config
  schedule = position_offset(config.method, 32)
  if active == 4:
    assert (schedule.width, schedule.power) == pytest.approx((4 / 32, 1))
  else:
    assert config.method.max_set_size == active
    assert config.method.prediction_budget == 2
  assert config.decode.window == 4
  convert(folder, tmp_path / "orbax")
  convert(tmp_path / "orbax", tmp_path / "back")
  assert json.loads((tmp_path / "back" / "config.json").read_text()) == values


def train_state(folder, backbone="dit", **changes):
  """A work directory with a step as training saves it: parameters and an EMA."""
  heads = {"model__kv_heads": 1} if backbone == "qwen3" else {}
  ffn = {} if backbone == "qwen3" else {"model__ffn": 64}
  config = tiny.config(model__backbone=backbone, **heads, **ffn, **changes)
  ids = Vocabulary(size=12, bos=8, eos=9, pad=10, mask=11)
  network = build_network(config.model, ids.size)
  params = network.init(jax.random.key(0))
  ema = jax.tree.map(lambda x: x + 1, params)
  tokenizer = {"name": "byte", **dataclasses.asdict(ids)}
  meta = {
    "config": config.to_dict(),
    "tokenizer": tokenizer,
    "weights_from": {"initialisation": "noise"},
  }
  data = iter(grain.MapDataset.range(1).to_iter_dataset())
  folder.mkdir()
  (folder / "config.json").write_text(
    json.dumps({"config": meta["config"], "data": {}})
  )
  row = {"step": 3, "time": 0.0, "validation/perplexity": 12.25}
  (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
  with Checkpoints(folder / "checkpoints", keep_latest=1) as checkpoints:
    checkpoints.save(3, {"params": params, "ema": ema}, data, meta, None)
  return config, ids, params, ema


TRAINED = [("dit", "set"), ("dit", "masked"), ("qwen3", "ar"), ("qwen3", "block")]
LATER = [("dit", "ar"), ("dit", "block"), ("dit", "any_order"), ("qwen3", "set")]
LATER += [("qwen3", "masked"), ("qwen3", "any_order")]


@pytest.mark.parametrize(
  "backbone, method",
  [*TRAINED, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in LATER)],
)
def test_weights_trained_here(tmp_path, method, backbone):
  config, ids, params, ema = train_state(
    tmp_path / "run", backbone, method__name=method
  )
  trees = {None: ema, "ema": ema, "raw": params}
  for number, (weights, tree) in enumerate(trees.items()):
    out, back = tmp_path / f"out{number}", tmp_path / f"back{number}"
    report = convert(tmp_path / "run", out, weights=weights, verify=True)
    assert report.weights == (weights or "ema")
    convert(out, back, verify=True)
    assert_same_tree(restored(back), tree)
  source = open_source(back)
  assert source.vocabulary == ids
  assert source.config.model == dataclasses.replace(
    config.model,
    head_size=source.config.model.head_size,
    kv_heads=source.config.model.kv_heads,
  )
  assert source.config.method.name == method
  if method == "set":
    assert position_offset(source.config.method, 16) == position_offset(
      config.method, 16
    )
  card = (out / "README.md").read_text()
  assert "| perplexity | 12.25 |" in card and method in card


def test_method_without_published_counterpart(tmp_path):
  train_state(tmp_path / "run", method__name="general")
  with pytest.raises(UserError, match=r"method\.name = 'general'"):
    convert(tmp_path / "run", tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_tokenizer_and_decode_files_travel(tmp_path):
  first = reference("setdlm_dit", tmp_path / "first", tokenizer_name="gpt2")
  texts = {
    "tokenizer.json": '{"model": {"type": "WordLevel", "vocab": {"größe": 0}, '
    '"unk_token": "größe"}}',
    "tokenizer_config.json": "{}",
    "generation_config.json": '{"max_window_size": 4}',
  }
  for name, text in texts.items():
    (first / name).write_text(text, encoding="utf-8")
  convert(first, tmp_path / "orbax")
  meta = open_source(tmp_path / "orbax").reader.meta
  assert meta["tokenizer"]["name"] == "json"
  assert set(meta["tokenizer"]["files"]) == {"tokenizer.json", "tokenizer_config.json"}
  convert(tmp_path / "orbax", tmp_path / "back")
  for name, text in texts.items():
    assert (tmp_path / "back" / name).read_text(encoding="utf-8") == text


def test_decode_settings(tmp_path):
  first = reference("setdlm_dit", tmp_path / "first")
  file = first / "generation_config.json"
  cases = {
    '{"max_window_size": 6}': (6, 0.0, "window"),
    '{"do_sample": true, "temperature": 0.5}': (4, 0.5, "window"),
    '{"do_sample": true, "use_first_hitting_order_in_decode": true}': (4, 1.0, "order"),
  }
  for text, wanted in cases.items():
    file.write_text(text)
    decode = open_source(first).config.decode
    assert decode.commit == "confidence"
    assert (decode.window, decode.temperature, decode.candidates) == wanted
  file.write_text('{"max_window_size": "6"}')
  with pytest.raises(UserError, match=r"max_window_size = '6'; must be an integer"):
    open_source(first)


@pytest.mark.parametrize("commit", ["order", "confidence"])
def test_decode_settings_of_weights_trained_here(tmp_path, commit):
  """The next position of an order is the surest of a window of one in that order."""
  decode = {"decode__commit": commit, "decode__window": 3, "decode__temperature": 0.7}
  config, *_ = train_state(tmp_path / "run", method__name="set", **decode)
  convert(tmp_path / "run", tmp_path / "out")
  wanted = config.decode
  if commit == "order":
    same = {"commit": "confidence", "candidates": "order", "window": 1}
    wanted = dataclasses.replace(wanted, **same)
  assert open_source(tmp_path / "out").config.decode == wanted


def test_padded_rows_are_kept_and_recorded(tmp_path):
  changes = {"vocab_size": 50, "pad_vocab_size_multiple": 64, "mask_token_id": 49}
  changes |= {"pad_token_id": 48, "bos_token_id": 47, "eos_token_id": 46}
  changes["tokenization_config"] = dict(changes)
  first = reference("setdlm_dit", tmp_path / "first", **changes)
  report = convert(first, tmp_path / "orbax", verify=True)
  assert any("14 rows" in note for note in report.notes)
  source = open_source(tmp_path / "orbax")
  assert source.vocabulary.size == 64 and source.used_ids == 50
  convert(tmp_path / "orbax", tmp_path / "back")
  assert stored(tmp_path / "back") == stored(first)


@pytest.mark.parametrize("name", ["setdlm_dit", "mdlm_qwen3"])
def test_description_is_the_same_on_both_sides(tmp_path, name):
  first = reference(name, tmp_path / "first")
  convert(first, tmp_path / "orbax")
  theirs, ours = describe(first), describe(tmp_path / "orbax")
  assert theirs["format"] == "pytorch" and ours["format"] == "orbax"
  same = ("parameters", "count", "bytes", "config", "vocabulary", "meaning")
  assert {key: theirs[key] for key in same} == {key: ours[key] for key in same}
  network = build_network(Config.from_dict(ours["config"]).model, 64)
  shapes = jax.eval_shape(network.init, jax.random.key(0))
  assert ours["count"] == sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
  text = description_text(ours)
  assert f"{ours['count']:,} parameters" in text and "blocks/up/kernel" in text


def test_a_run_cannot_continue_in_a_converted_directory(tmp_path):
  convert(reference("ar_dit", tmp_path / "first"), tmp_path / "orbax")
  config, fingerprint = workdir.read(tmp_path / "orbax")
  assert fingerprint == {"converted_from": str(tmp_path / "first")}
  with pytest.raises(UserError, match="converted_from"):
    workdir.claim(tmp_path / "orbax", config, {"train": "abc"})
