"""The other side itself: files that torch writes, models that transformers runs."""

import collections
import json

import jax.numpy as jnp
import numpy as np
import pytest

from set_diffusion_jax.convert import convert, layout
from set_diffusion_jax.convert.pickled import Archive
from set_diffusion_jax.convert.source import open_source
from set_diffusion_jax.convert.verify import verify_logits
from set_diffusion_jax.diffusion.index import clean_stream
from set_diffusion_jax.diffusion.order import left_to_right
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.model import build_network
from tests.golden import Golden
from tests.test_convert import (
  MODELS,
  published,
  reference,
  restored,
  stored,
  train_state,
)

pytestmark = [
  pytest.mark.torch,
  # Libraries of the other side warn of their own futures.
  pytest.mark.filterwarnings("ignore"),
]
torch = pytest.importorskip("torch")


def bits(tensor):
  """Of a tensor that NumPy has no dtype for."""
  flat = tensor.detach().contiguous().flatten()
  return flat.view(torch.uint8).numpy().tobytes()


def test_reads_what_torch_saves(tmp_path):
  base = torch.arange(40, dtype=torch.float32)
  values = collections.OrderedDict(
    whole=base,
    part=base[3:9].reshape(2, 3),
    transposed=base.reshape(5, 8).T,
    step=base.reshape(5, 8)[::2, 1::3],
    parameter=torch.nn.Parameter(torch.randn(3, 4)),
    narrow=torch.randn(6, dtype=torch.bfloat16),
    half=torch.randn(2, 2, dtype=torch.float16),
    double=torch.randn(3, dtype=torch.float64),
    ids=torch.arange(5),
    flags=torch.tensor([True, False]),
    scalar=torch.tensor(0.5),
    empty=torch.zeros(0, 3),
  )
  path = tmp_path / "values.pt"
  nested = {"size": torch.Size([1, 2]), "dtype": torch.float32, "set": {1, 2}}
  torch.save({"state_dict": values, "device": torch.device("cpu"), **nested}, path)
  found = Archive(path).load()
  assert found["size"] == (1, 2) and "set" in found
  assert list(found["state_dict"]) == list(values)
  for name, tensor in values.items():
    read = found["state_dict"][name]
    assert read.shape == tuple(tensor.shape)
    assert read.dtype.name == str(tensor.dtype).removeprefix("torch.")
    assert read.read().tobytes() == bits(tensor), name


def test_reads_a_module_and_refuses_it_by_name(tmp_path):
  module, path = torch.nn.Linear(3, 2), tmp_path / "x.pt"
  torch.save(module.state_dict(), path)
  assert Archive(path).load()["weight"].read().shape == (2, 3)
  torch.save(module, path)
  with pytest.raises(UserError, match=r"torch\.nn\.modules\.linear\.Linear"):
    Archive(path).load()
  torch.save({"w": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
  with pytest.raises(UserError, match="before 1"):
    Archive(path).load()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_saved_reference_weights(tmp_path, dtype):
  wanted = reference("setdlm_dit_adaln", tmp_path / "wanted", dtype)
  tensors = Golden("setdlm_dit_adaln").tensors
  kind = getattr(torch, dtype)
  state = {name: torch.tensor(value).to(kind) for name, value in tensors.items()}
  (tmp_path / "first").mkdir()
  torch.save(state, tmp_path / "first" / "pytorch_model.bin")
  values = json.dumps(published("setdlm_dit_adaln"))
  (tmp_path / "first" / "config.json").write_text(values)
  convert(tmp_path / "first", tmp_path / "orbax", verify=True)
  convert(tmp_path / "orbax", tmp_path / "back", verify=True)
  assert stored(tmp_path / "back") == stored(wanted)


def test_written_files_load_in_torch(tmp_path):
  safetensors_torch = pytest.importorskip("safetensors.torch")
  first = reference("setdlm_qwen3", tmp_path / "first", "bfloat16")
  convert(first, tmp_path / "orbax")
  convert(tmp_path / "orbax", tmp_path / "back")
  load = safetensors_torch.load_file
  theirs, ours = (load(tmp_path / f / "model.safetensors") for f in ("first", "back"))
  assert theirs.keys() == ours.keys()
  assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_rotary_frequencies_round_as_torch_does():
  for size in (8, 16, 32, 64, 128):
    theirs = 1.0 / (10_000 ** (torch.arange(0, size, 2).float() / size))
    np.testing.assert_array_equal(layout.inverse_frequencies(size, 1e4), theirs)


def qwen3(tied, **changes):
  transformers = pytest.importorskip("transformers")
  sizes = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "rope_theta": 5e5,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": tied,
    "bos_token_id": 60,
    "eos_token_id": 61,
    "pad_token_id": 62,
    "initializer_range": 0.3,
  }
  torch.manual_seed(0)
  config = transformers.Qwen3Config(**sizes | changes)
  model = transformers.Qwen3ForCausalLM(config).eval()
  with torch.no_grad():  # norms start as ones: any of them would do
    for name, parameter in model.named_parameters():
      if "norm" in name:
        parameter.add_(0.2 * torch.randn_like(parameter))
  return model


def logits(workdir, tokens):
  """Of the converted weights, causally."""
  source = open_source(workdir)
  network = build_network(source.config.model, source.vocabulary.size)
  index = clean_stream(
    left_to_right(*tokens.shape), jnp.ones(tokens.shape, bool), tokens.shape[1]
  )
  params = restored(workdir, np.float32)
  h, _ = network.hidden(params, jnp.asarray(tokens), index)
  return np.asarray(network.unembed(params, h))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_qwen3_of_transformers(tmp_path, tied, file):
  """A plain Qwen3 directory loads, and its causal logits are transformers' own."""
  model = qwen3(tied)
  model.save_pretrained(tmp_path / "qwen3")
  if file.endswith("bin"):
    (tmp_path / "qwen3" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "qwen3" / file)
  report = convert(tmp_path / "qwen3", tmp_path / "orbax", verify=True)
  assert any("mask_token_id" in note for note in report.notes)
  config = open_source(tmp_path / "orbax").config
  assert config.model.tied is tied and config.method.name == "ar"
  tokens = np.random.default_rng(0).integers(0, 64, (2, 24)).astype(np.int32)
  with torch.no_grad():
    wanted = model(torch.tensor(tokens).long()).logits.numpy()
  assert wanted.std() > 0.5
  found = logits(tmp_path / "orbax", tokens)
  np.testing.assert_allclose(found, wanted, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_qwen3_trained_here_runs_in_transformers(tmp_path, tied):
  """The wrapped model and the Qwen3 configuration that is written beside it."""
  transformers = pytest.importorskip("transformers")
  train_state(tmp_path / "run", "qwen3", method__name="ar", model__tied=tied)
  convert(tmp_path / "run", tmp_path / "out", verify=True)
  convert(tmp_path / "out", tmp_path / "orbax", verify=True)
  config = transformers.AutoConfig.from_pretrained(
    tmp_path / "out" / "backbone_config.json"
  )
  model = transformers.Qwen3ForCausalLM(config).eval()
  from safetensors.torch import load_file

  state = load_file(tmp_path / "out" / "model.safetensors")
  state = {name.removeprefix("backbone.model."): value for name, value in state.items()}
  missing, extra = model.load_state_dict(state, strict=False)
  assert not extra and set(missing) == ({"lm_head.weight"} if tied else set())
  model.tie_weights()
  tokens = np.random.default_rng(0).integers(0, 12, (2, 10)).astype(np.int32)
  with torch.no_grad():
    wanted = model(torch.tensor(tokens).long()).logits.numpy()
  found = logits(tmp_path / "orbax", tokens)
  np.testing.assert_allclose(found, wanted, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_the_reference_by_pytorch(name, tmp_path):
  """--verify's forward pass in PyTorch, on every published layout, both ways."""
  first = reference(name, tmp_path / "first")
  into = convert(first, tmp_path / "orbax", verify=True)
  back = convert(tmp_path / "orbax", tmp_path / "back", verify=True)
  assert 0 < into.logits_difference < 1e-4
  assert back.logits_difference == into.logits_difference


def test_a_wrong_layout_is_seen_in_the_logits(tmp_path, monkeypatch):
  """Heads in another order give other logits, although the tensors round-trip."""
  first = reference("setdlm_dit", tmp_path / "first")
  true = layout.Parameter.from_rows

  def swapped(self, rows, piece):
    values = true(self, rows, piece)
    if self.path != "blocks/qkv/kernel":
      return values
    return np.ascontiguousarray(values[:, :, :, ::-1])

  monkeypatch.setattr(layout.Parameter, "from_rows", swapped)
  with pytest.raises(UserError, match=r"--verify: logits .* differ"):
    verify_logits(open_source(first))
