"""Files of PyTorch and its trainers, written by hand: torch is not needed to read."""

import collections
import json
import zipfile

import numpy as np
import pytest

from set_diffusion_jax.convert import convert
from set_diffusion_jax.convert.pickled import Archive
from set_diffusion_jax.convert.program import Skipped
from set_diffusion_jax.convert.source import open_source
from set_diffusion_jax.errors import UserError
from tests.convert_files import Call, Name, Strided, safetensors_bytes, torch_bytes
from tests.golden import Golden
from tests.test_convert import assert_same_tree, published, reference, restored, stored

# As PyTorch orders a module's parameters: attributes in the order of their definition.
DIT_ORDER = ("vocab_embed", "sigma_map", "rotary_emb", "blocks", "output_layer")


def parameter_order(tensors):
  """A state dict's order; the rotary buffer is among the parameters."""
  rank = lambda name: next(i for i, part in enumerate(DIT_ORDER) if part in name)
  return collections.OrderedDict(sorted(tensors.items(), key=lambda kv: rank(kv[0])))


def dit():
  return parameter_order(Golden("setdlm_dit_adaln").tensors)


def write(folder, value, file="last.ckpt", name="setdlm_dit_adaln", **changes):
  folder.mkdir(exist_ok=True)
  (folder / "config.json").write_text(json.dumps(published(name) | changes))
  (folder / file).write_bytes(torch_bytes(value))
  return folder / file


def buffers(name):
  return name.endswith("inv_freq")


def test_pytorch_model_bin(tmp_path):
  wanted = reference("setdlm_dit_adaln", tmp_path / "wanted")
  path = write(tmp_path / "first", dit(), "pytorch_model.bin")
  for number, source in enumerate((path, path.parent)):
    convert(source, tmp_path / f"orbax{number}", verify=True)
    convert(tmp_path / f"orbax{number}", tmp_path / f"back{number}")
    assert stored(tmp_path / f"back{number}") == stored(wanted)


def test_pytorch_model_in_shards(tmp_path):
  wanted = reference("setdlm_dit_adaln", tmp_path / "wanted")
  tensors = list(dit().items())
  parts = {"a.bin": dict(tensors[:9]), "b.bin": dict(tensors[9:])}
  for file, part in parts.items():
    path = write(tmp_path / "first", part, file)
  weight_map = {name: file for file, part in parts.items() for name in part}
  index = {"metadata": {}, "weight_map": weight_map}
  (path.parent / "pytorch_model.bin.index.json").write_text(json.dumps(index))
  convert(path.parent, tmp_path / "orbax", verify=True)
  convert(tmp_path / "orbax", tmp_path / "back")
  assert stored(tmp_path / "back") == stored(wanted)


def test_views_and_shared_storages(tmp_path):
  base = np.arange(24, dtype=np.float32)
  both = {
    "row": Strided(base, 4, (2, 3), (3, 1)),
    "transposed": Strided(base, 0, (4, 6), (1, 4)),
    "step": Strided(base, 1, (3, 2), (8, 2)),
    "scalar": Strided(base, 7, (), ()),
    "whole": base,
    "number": np.arange(3),
  }
  path = tmp_path / "views.pt"
  path.write_bytes(torch_bytes(both))
  found = Archive(path).load()
  np.testing.assert_array_equal(found["row"].read(), base[4:10].reshape(2, 3))
  np.testing.assert_array_equal(found["transposed"].read(), base.reshape(6, 4).T)
  np.testing.assert_array_equal(
    found["transposed"].read(1, 3), base.reshape(6, 4).T[1:3]
  )
  step = np.array([[1, 3], [9, 11], [17, 19]])
  np.testing.assert_array_equal(found["step"].read(), step)
  np.testing.assert_array_equal(found["step"].read(2), step[2:])
  assert found["scalar"].read() == 7
  assert found["number"].dtype == np.int64
  with zipfile.ZipFile(path) as archive:
    assert len([n for n in archive.namelist() if "/data/" in n]) == 2


def average(tensors):
  return {name: value + 1 for name, value in tensors.items() if not buffers(name)}


def lightning(prefix="backbone.", compiled="", **changes):
  """Raw weights and an EMA one higher, in the order of the parameters."""
  named = {
    name.replace("backbone.", prefix + compiled): value for name, value in dit().items()
  }
  value = {
    "epoch": 1,
    "pytorch-lightning_version": "2.2",
    "state_dict": collections.OrderedDict(named),
    "ema": {"decay": 0.9999, "shadow_params": list(average(dit()).values())},
    "optimizer_states": [{"state": {0: {"exp_avg": np.zeros(3, np.float32)}}}],
    "hyper_parameters": {"config": Call(Name("omegaconf.dictconfig", "DictConfig"))},
    "tokenizer": Call(Name("transformers.models.gpt2.tokenization_gpt2_fast", "Fast")),
    "loops": {"time": Call(Name("datetime", "timedelta"), 0, 5, 0)},
  }
  return value | changes


def composer(ema=True):
  named = {f"model.{name}": value for name, value in dit().items()}
  averages = {f"model.{name}": value for name, value in average(dit()).items()}
  model = {"named_parameters_dict": averages, "named_buffers_dict": {}}
  algorithms = [("GradientClipping", {}), ("EMA", {"ema_model": model})]
  rng = Call(Name("numpy.core.multiarray", "_reconstruct"))
  state = {"model": named, "algorithms": algorithms if ema else []}
  return {"state": state, "rng": [{"numpy": ("MT19937", rng)}]}


CHECKPOINTS = {
  "lightning": ("last.ckpt", lightning),
  "compiled": ("last.ckpt", lambda: lightning(compiled="_orig_mod.")),
  "bare": ("last.ckpt", lambda: lightning(prefix="")),
  "composer": ("ep1.pt", composer),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_training_checkpoints_and_their_ema(tmp_path, kind):
  file, make = CHECKPOINTS[kind]
  path = write(tmp_path / "first", make())
  path = path.rename(path.with_name(file))
  raw, ema = dit(), {**dit(), **average(dit())}
  for weights, wanted in ((None, ema), ("ema", ema), ("raw", raw)):
    name = weights or "none"
    report = convert(path, tmp_path / name, weights=weights, verify=True)
    assert report.weights == (weights or "ema")
    assert open_source(tmp_path / name).kind == (weights or "ema")
    folder = tmp_path / f"wanted-{name}"
    reference("setdlm_dit_adaln", folder)
    (folder / "model.safetensors").write_bytes(safetensors_bytes(wanted))
    convert(folder, tmp_path / f"same-{name}")
    assert_same_tree(restored(tmp_path / name), restored(tmp_path / f"same-{name}"))


def test_ema_is_not_invented(tmp_path):
  path = write(tmp_path / "first", composer(ema=False), "ep1.pt")
  with pytest.raises(UserError, match="has no EMA"):
    convert(path, tmp_path / "out", weights="ema")
  assert convert(path, tmp_path / "out").weights is None


def test_ema_in_another_order_is_refused(tmp_path):
  value = lightning()
  value["ema"]["shadow_params"].reverse()
  path = write(tmp_path / "first", value)
  with pytest.raises(UserError, match="do not follow the model's parameters"):
    convert(path, tmp_path / "out")
  value["ema"]["shadow_params"].pop()
  path = write(tmp_path / "first", value)
  with pytest.raises(UserError, match="has 29 tensors, the model 30"):
    convert(path, tmp_path / "out")


@pytest.mark.parametrize("where", ["checkpoint", "state_dict"])
def test_clipped_noise_levels(tmp_path, where):
  tensors = Golden("bd3lm_dit").tensors
  levels = {
    "sampling_eps_min": np.array(0.45, np.float32),
    "sampling_eps_max": np.array(0.95, np.float32),
  }
  value = {"state_dict": {**tensors}}
  (value if where == "checkpoint" else value["state_dict"]).update(levels)
  path = write(tmp_path / "first", value, name="bd3lm_dit")
  convert(path, tmp_path / "orbax")
  corruption = open_source(tmp_path / "orbax").config.corruption
  assert (corruption.t_min, corruption.t_max) == (0.45, 0.95)


def test_older_bd3lms_names(tmp_path):
  """`hidden_dim` and `n_blocks`; [MASK] is the row that those projects append."""
  values = {
    "architectures": ["BD3LM"],
    "model_type": "bd3lm",
    "adaln": True,
    "block_size": 4,
    "causal": False,
    "cond_dim": 16,
    "dropout": 0.1,
    "hidden_dim": 32,
    "model_length": 32,
    "n_blocks": 2,
    "n_heads": 4,
    "sampling_eps_max": 0.999,
    "sampling_eps_min": 0.001,
    "time_conditioning": False,
    "vocab_size": 64,
  }
  folder = reference("setdlm_dit_adaln", tmp_path / "first")
  (folder / "config.json").write_text(json.dumps(values))
  report = convert(folder, tmp_path / "orbax", verify=True)
  assert any("mask_token_id" in note for note in report.notes)
  source = open_source(tmp_path / "orbax")
  assert source.config.method.name == "block" and source.config.method.block_size == 4
  assert source.vocabulary.mask == 63
  assert source.config.corruption.t_min == 0.001
  convert(tmp_path / "orbax", tmp_path / "new", verify=True)
  assert stored(tmp_path / "new") == stored(folder)
  written = json.loads((tmp_path / "new" / "config.json").read_text())
  assert written["architectures"] == ["BD3LM"] and written["block_size"] == 4

  del values["block_size"]
  (folder / "config.json").write_text(json.dumps(values | {"model_type": "mdlm"}))
  config = open_source(folder).config
  assert config.method.name == "masked" and config.corruption.schedule == "log_linear"


ATTACKS = {
  "posix.system": Call(Name("posix", "system"), "touch PWNED"),
  "os.system": Call(Name("os", "system"), "touch PWNED"),
  "builtins.eval": Call(Name("builtins", "eval"), "open('PWNED', 'w')"),
  "builtins.exec": Call(Name("builtins", "exec"), "open('PWNED', 'w')"),
  "builtins.getattr": Call(Name("builtins", "getattr"), "", "join"),
  "subprocess.Popen": Call(Name("subprocess", "Popen"), ("touch", "PWNED")),
  "torch.load": Call(Name("torch", "load"), "x"),
  "torch._utils._rebuild_sparse_tensor": Name("torch._utils", "_rebuild_sparse_tensor"),
  "transformers.pipeline": Call(Name("transformers", "pipeline")),
  "my.project.Settings": Call(Name("my.project", "Settings")),
  "numpy.load": Call(Name("numpy", "load"), "x"),
}


@pytest.mark.parametrize("place", ["root", "beside", "inside"])
@pytest.mark.parametrize("name", ATTACKS)
def test_hostile_pickles_are_refused_by_name(tmp_path, monkeypatch, name, place):
  monkeypatch.chdir(tmp_path)
  value = {"root": ATTACKS[name], "beside": lightning(extra=[ATTACKS[name]])}
  value["inside"] = lightning()
  value["inside"]["state_dict"]["backbone.vocab_embed.embedding"] = ATTACKS[name]
  path = write(tmp_path / "first", value[place])
  with pytest.raises(UserError) as error:
    convert(path, tmp_path / "out")
  assert f" {name}," in str(error.value) and "\n" not in str(error.value)
  assert not (tmp_path / "PWNED").exists() and not (tmp_path / "out").exists()


def test_placeholders_hold_nothing(tmp_path):
  path = tmp_path / "x.pt"
  value = Call(Name("omegaconf.dictconfig", "DictConfig"), {"a": 1})
  path.write_bytes(torch_bytes({"settings": value}))
  found = Archive(path).load()["settings"]
  assert type(found) is Skipped and not vars(found)


def test_weights_may_not_be_placeholders(tmp_path):
  value = dit() | {"backbone.vocab_embed.embedding": Call(Name("numpy", "ndarray"))}
  path = write(tmp_path / "first", dict(value), "pytorch_model.bin")
  with pytest.raises(UserError, match="embedding must be a tensor"):
    convert(path, tmp_path / "out")


BAD_VIEWS = {
  "out of its storage": Strided(np.zeros(4, np.float32), 2, (3,), (1,)),
  "description is damaged": Strided(np.zeros(4, np.float32), -1, (3,), (1,)),
  "is damaged": Strided(np.zeros(4, np.float32), 0, (2,), (1, 1)),
}


@pytest.mark.parametrize("message", BAD_VIEWS)
def test_views_cannot_leave_their_storage(tmp_path, message):
  path = tmp_path / "x.pt"
  path.write_bytes(torch_bytes({"w": BAD_VIEWS[message]}))
  with pytest.raises(UserError, match=message):
    Archive(path).load()


def broken_archives():
  whole = torch_bytes({"w": np.zeros(64, np.float32)})
  yield "truncated", whole[: len(whole) // 2]
  yield "no PyTorch file", b"nothing of the kind"
  yield "before 1.6", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
  yield "no PyTorch file", b""
  yield "compressed", torch_bytes({"w": np.zeros(0, np.float32)}, zipfile.ZIP_DEFLATED)
  yield (
    "data.pkl is damaged",
    whole.replace(b"_rebuild_tensor_v2\n", b"_rebuild_tensor_v2)"),
  )


@pytest.mark.parametrize("message, content", list(broken_archives()))
def test_broken_archives(tmp_path, message, content):
  path = write(tmp_path / "first", {})
  path.write_bytes(content)
  with pytest.raises(UserError, match=message) as error:
    convert(path, tmp_path / "out")
  assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_program_cannot_ask_for_memory_it_does_not_fill(tmp_path):
  path, huge = tmp_path / "x.pt", (2**32 - 1).to_bytes(4, "little")
  for program in (b"\x80\x02}r" + huge + b".", b"\x80\x04B" + huge + b"abc."):
    path.write_bytes(torch_bytes({}, edit=lambda _, program=program: program))
    with pytest.raises(UserError, match="pickle is damaged"):
      Archive(path).load()


def test_changed_bytes_of_a_pickle_end_in_one_line(tmp_path):
  """A thousand programs that nobody wrote: read, or refused."""
  path, rng, refused = tmp_path / "x.pt", np.random.default_rng(0), 0
  value = {"state_dict": {"w": np.zeros(8, np.float32)}, "epoch": 3, "names": ["a"]}
  value["settings"] = Call(Name("omegaconf.dictconfig", "DictConfig"))

  def edit(program):
    program = bytearray(program)
    for _ in range(rng.integers(1, 4)):
      program[rng.integers(len(program))] = rng.integers(256)
    return bytes(program)

  for _ in range(1000):
    path.write_bytes(torch_bytes(value, edit=edit))
    try:
      Archive(path).load()
    except UserError as error:
      refused += 1
      assert "\n" not in str(error)
  assert refused > 500
