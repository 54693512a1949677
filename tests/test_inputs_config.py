"""A config.json that its tensors or tokenizer contradict is refused, or followed."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from set_diffusion_jax import cli
from set_diffusion_jax.config import Config
from set_diffusion_jax.convert import convert, describe
from set_diffusion_jax.convert.layout import parameters
from set_diffusion_jax.convert.settings import read_settings
from set_diffusion_jax.convert.source import open_source
from set_diffusion_jax.diffusion.index import clean_stream
from set_diffusion_jax.diffusion.order import left_to_right
from set_diffusion_jax.errors import UserError
from set_diffusion_jax.model import build_network
from tests.convert_files import safetensors_bytes
from tests.golden import ROOT
from tests.test_convert import published, reference, train_state

ROWS = 32
CONFIG = {
  "architectures": ["Qwen3ForCausalLM"],
  "model_type": "qwen3",
  "hidden_size": 16,
  "num_attention_heads": 2,
  "num_key_value_heads": 1,
  "head_dim": 8,
  "intermediate_size": 24,
  "num_hidden_layers": 2,
  "vocab_size": ROWS,
  "max_position_embeddings": 64,
  "rms_norm_eps": 1e-6,
  "rope_theta": 1e6,
  "tie_word_embeddings": True,
  "eos_token_id": 2,
}


def model(**changes):
  settings = {"backbone": "qwen3", "layers": 2, "width": 16, "heads": 2, "kv_heads": 1}
  settings |= {"head_size": 8, "ffn": 24, "tied": True}
  return Config.from_dict({"model": settings | changes}).model


def tensors(head=None):
  rng = np.random.default_rng(0)
  found = {
    f"model.{name}": rng.normal(size=p.tensor_shape).astype(np.float32)
    for p in parameters(model(), ROWS)
    for name in p.names()
  }
  if head is not None:
    found["lm_head.weight"] = found["model.embed_tokens.weight"] + np.float32(head)
  return found


def plain(folder, found=None, tokens=None, without=(), **changes):
  """A plain Qwen3 directory, and a tokenizer of so many words, four of them special."""
  folder.mkdir(parents=True, exist_ok=True)
  found = tensors() if found is None else found
  (folder / "model.safetensors").write_bytes(safetensors_bytes(found))
  values = {k: v for k, v in (CONFIG | changes).items() if k not in without}
  (folder / "config.json").write_text(json.dumps(values))
  if tokens is not None:
    words = {f"w{number}": number for number in range(tokens)}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "w4"}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": n, "content": f"w{n}", "special": True, **flags} for n in range(4)]
    text = json.dumps({"model": model, "added_tokens": added})
    (folder / "tokenizer.json").write_text(text)
  return folder


def refused(folder, *words):
  with pytest.raises(UserError) as error:
    describe(folder)
  message = str(error.value)
  assert "\n" not in message and len(message) < 500
  for word in words:
    assert word in message, message


def noted(folder, *words):
  notes = describe(folder)["notes"]
  for word in words:
    assert any(word in note for note in notes), notes


def test_a_plain_directory(tmp_path):
  found = describe(plain(tmp_path / "q"))
  assert found["config"]["model"]["tied"] and found["config"]["model"]["layers"] == 2
  assert found["config"]["model"]["rotary_base"] == 1e6
  assert found["vocabulary"]["used_ids"] == ROWS


def test_a_lost_layer(tmp_path, capsys):
  found = {name: value for name, value in tensors().items() if ".layers.1." not in name}
  folder = plain(tmp_path / "q", found)
  refused(folder, "num_hidden_layers = 2; must be 1, as the tensors have")
  assert cli.main(["convert", str(folder), str(tmp_path / "out")]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert "num_hidden_layers" in line and not (tmp_path / "out").exists()


CHANGES = [
  *({"num_hidden_layers": n} for n in (1, 3, 0, -1, 2.0, "2", True, None, 10**12)),
  *({"hidden_size": n} for n in (8, 16.0, 10**30)),
  {"num_attention_heads": 4},
  {"num_key_value_heads": 2},
  {"head_dim": 16},
  {"intermediate_size": 25},
  {"vocab_size": 31},
  *({"max_position_embeddings": n} for n in (0, -1, 64.0, True, None)),
  *({"rms_norm_eps": x} for x in (0, -1e-6, "1e-6", True, 1e30)),
  *({"rope_theta": x} for x in (0, -1.0, "1e6", True, None, 10**400, 1e300)),
  *({"tie_word_embeddings": x} for x in (False, 1, "true", None)),
  *({"hidden_act": x} for x in ("gelu", "relu", 1)),
  {"hidden_activation": "gelu"},
  {"attention_bias": True},
  {"attention_bias": 1},
  {"mlp_bias": True},
  {"attention_dropout": 0.1},
  {"quantization_config": {"quant_method": "fp8"}},
  {"use_sliding_window": True},
  {"layer_types": ["full_attention", "sliding_attention"]},
  {"layer_types": ["full_attention"]},
  {"layer_types": "full_attention"},
  {"partial_rotary_factor": 0.5},
  {"is_causal": False},
  {"final_logit_softcapping": 30.0},
  {"attn_logit_softcapping": 50.0},
  {"logit_scale": 0.5},
  {"logits_scaling": 2.0},
  {"embedding_multiplier": 12.0},
  {"use_qk_norm": False},
  {"num_experts": 8},
  {"a\nname": 1},
  {"architectures": ["Qwen2ForCausalLM"]},
  {"architectures": ["Qwen3ForCausalLM", "Qwen3Model"]},
  *({"model_type": x} for x in ("qwen2", "llama", "qwen3_moe", None, 3)),
  *(
    {"eos_token_id": x} for x in (32, -1, 2.0, True, "2", None, [], [2, 40], [2, True])
  ),
  *({"bos_token_id": x} for x in (32, -1, True, [1])),
  {"pad_token_id": 10**12},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_field_that_would_change_the_model(tmp_path, change):
  (name,) = change
  shown = repr(name) if "\n" in name else name
  refused(plain(tmp_path / "q", **change), shown, "; must be ")


SCALINGS = [
  {"rope_scaling": {"type": "yarn", "factor": 4.0}},
  {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
  {"rope_scaling": {"rope_type": "default", "type": "linear"}},
  {"rope_scaling": {"factor": 2.0}},
  {"rope_scaling": {"mrope_section": [1, 1, 2]}},
  {"rope_scaling": "yarn"},
  {"rope_scaling": ["yarn"]},
  {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e6}},
  {"rope_parameters": {"type": "dynamic"}},
  {"rope_parameters": {"rope_theta": 1e4}},
  {"rope_parameters": {"rope_theta": -1}},
  {"rope_parameters": {"rope_theta": 1e6, "partial_rotary_factor": 0.5}},
  {"rope_parameters": {"full_attention": {"rope_theta": 1e6, "rope_type": "yarn"}}},
  {"rope_ratio": 2.0},
  {"rope_interleaved": True},
]


@pytest.mark.parametrize("change", SCALINGS, ids=str)
def test_rotary_positions_that_are_scaled(tmp_path, change):
  refused(plain(tmp_path / "q", **change), "rope_", "must be")


@pytest.mark.parametrize(
  "change",
  [
    {"rope_scaling": None},
    {"rope_scaling": {"type": "default"}},
    {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
    {"sliding_window": 128, "use_sliding_window": False},
    {"layer_types": ["full_attention"] * 2, "dtype": "bfloat16", "pad_token_id": None},
    {"some_later_field": None, "hidden_act": "silu", "attention_dropout": 0.0},
  ],
  ids=str,
)
def test_fields_that_leave_it_as_it_is(tmp_path, change):
  found = describe(plain(tmp_path / "q", **change))
  assert found["config"] == describe(plain(tmp_path / "same"))["config"]


def test_several_ids_end_a_text(tmp_path):
  folder = plain(tmp_path / "q", eos_token_id=[7, 5])
  assert describe(folder)["vocabulary"]["eos"] == 7
  noted(folder, "eos_token_id: 2 ids; only the first, 7")


SIZES = {
  "0.6B": (1024, 3072, 28, 16, True),
  "1.7B": (2048, 6144, 28, 16, True),
  "8B": (4096, 12288, 36, 32, False),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("newer", [False, True])
def test_released_configurations(tmp_path, size, newer):
  """As Transformers 4 and 5 write them."""
  width, ffn, layers, heads, tied = SIZES[size]
  values = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": width,
    "initializer_range": 0.02,
    "intermediate_size": ffn,
    "max_position_embeddings": 40960,
    "max_window_layers": layers,
    "model_type": "qwen3",
    "num_attention_heads": heads,
    "num_hidden_layers": layers,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "sliding_window": None,
    "tie_word_embeddings": tied,
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
  }
  values |= (
    {
      "dtype": "bfloat16",
      "layer_types": ["full_attention"] * layers,
      "pad_token_id": None,
      "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
      "transformers_version": "5.0.0",
    }
    if newer
    else {
      "rope_scaling": None,
      "rope_theta": 1000000,
      "torch_dtype": "bfloat16",
      "transformers_version": "4.51.0",
    }
  )
  changes = {"width": width, "ffn": ffn, "layers": layers, "heads": heads}
  wanted = model(**changes, kv_heads=8, head_size=128, tied=tied)
  found = {n: p.tensor_shape for p in parameters(wanted, 151936) for n in p.names()}
  settings = read_settings(tmp_path / "config.json", values, found, tokens=151669)
  assert (
    settings.config.model
    == Config.from_dict(
      {
        "model": {
          **wanted.__dict__,
          "rotary_base": 1e6,
          "norm_epsilon": 1e-6,
        }
      }
    ).model
  )
  assert settings.used_ids == 151669 and settings.vocabulary.mask == 151935
  assert settings.vocabulary.eos == 151645


def test_a_head_that_is_stored_though_tied(tmp_path):
  same = describe(plain(tmp_path / "same", tensors(head=0)))
  assert not any("lm_head" in note for note in same["notes"])
  assert not any("head" in row["path"] for row in same["parameters"])
  other = plain(tmp_path / "other", tensors(head=1))
  noted(other, "lm_head.weight: has other values than the embedding")
  assert describe(other)["parameters"] == same["parameters"]
  folder = plain(tmp_path / "untied", tensors(head=1), tie_word_embeddings=False)
  found = open_source(folder).tree()
  np.testing.assert_array_equal(found["head"]["kernel"].T, found["embedding"] + 1)


def test_a_head_that_is_missing(tmp_path):
  refused(plain(tmp_path / "q", tie_word_embeddings=False), "lm_head.weight")
  refused(plain(tmp_path / "r", without=["tie_word_embeddings"]), "lm_head.weight")


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_transformers_leaves_out_the_head_of_a_tied_model(tmp_path):
  transformers = pytest.importorskip("transformers")
  if not transformers.__version__.startswith("4."):
    pytest.skip("version 4 alone is followed")
  folder = plain(tmp_path / "q", tensors(head=1))
  path = folder / "model.safetensors"
  entries = {"__metadata__": {"format": "pt"}}
  path.write_bytes(safetensors_bytes(tensors(head=1), **entries))
  theirs = transformers.Qwen3ForCausalLM.from_pretrained(folder)
  ours = open_source(folder).tree()
  np.testing.assert_array_equal(theirs.lm_head.weight.detach(), ours["embedding"])


def test_rows_without_a_token(tmp_path):
  folder = plain(tmp_path / "q", tokens=20)
  noted(folder, "12 rows of the embedding, from id 20, are padding")
  convert(folder, tmp_path / "orbax")
  convert(tmp_path / "orbax", tmp_path / "back")
  for path in (folder, tmp_path / "orbax", tmp_path / "back"):
    found = describe(path)["vocabulary"]
    assert (found["size"], found["used_ids"], found["mask"]) == (ROWS, 20, ROWS - 1)
  refused(
    plain(tmp_path / "more", tokens=33), "tokenizer.json has the id 32", "32 rows"
  )
  refused(plain(tmp_path / "full", tokens=32), "mask_token_id is missing", "every row")
  found = describe(plain(tmp_path / "given", tokens=32, mask_token_id=3))
  assert found["vocabulary"]["mask"] == 3


@pytest.mark.parametrize("kind", ["bos", "eos"])
def test_a_mask_that_begins_or_ends_texts(tmp_path, kind):
  ids = {"bos_token_id": 1, "eos_token_id": 2}
  mask = {"mask_token_id": ids[f"{kind}_token_id"]}
  words = "mask_token_id", f"must be another id than {kind}_token_id"
  refused(plain(tmp_path / "plain", tokens=20, **ids, **mask), *words)
  refused(plain(tmp_path / "bare", **{**ids, f"{kind}_token_id": ROWS - 1}), *words)
  folder = reference("setdlm_dit", tmp_path / "published")
  values = published("setdlm_dit") | ids | mask | {"tokenization_config": None}
  (folder / "config.json").write_text(json.dumps(values))
  refused(folder, *words)


def test_rows_without_a_token_of_a_published_model(tmp_path):
  folder = reference("setdlm_dit", tmp_path / "first")
  plain(tmp_path / "q", tokens=50)
  (tmp_path / "q" / "tokenizer.json").rename(folder / "tokenizer.json")
  assert describe(folder)["vocabulary"]["used_ids"] == 64  # [MASK] is id 63
  ids = {f"{kind}_token_id": n for n, kind in enumerate(("mask", "pad", "bos", "eos"))}
  values = published("setdlm_dit") | ids | {"tokenization_config": None}
  (folder / "config.json").write_text(json.dumps(values))
  assert describe(folder)["vocabulary"]["used_ids"] == 50


# Constants of a Qwen3.


def run(folder):
  """A step that was trained with other constants than those of the released models."""
  constants = {"model__rotary_base": 1e4, "model__norm_epsilon": 1e-5}
  train_state(folder, "qwen3", method__name="ar", **constants)
  return folder


def logits(workdir):
  source = open_source(workdir)
  network = build_network(source.config.model, source.vocabulary.size)
  tokens = jnp.arange(10, dtype=jnp.int32)[None]
  index = clean_stream(left_to_right(1, 10), jnp.ones(tokens.shape, bool), 10)
  params = jax.tree.map(jnp.asarray, source.tree())
  return np.asarray(network.unembed(params, network.hidden(params, tokens, index)[0]))


def test_other_constants_go_there_and_back(tmp_path, capsys):
  convert(run(tmp_path / "run"), tmp_path / "out")
  convert(tmp_path / "out", tmp_path / "back")
  np.testing.assert_array_equal(logits(tmp_path / "back"), logits(tmp_path / "run"))
  beside = tmp_path / "out" / "backbone_config.json"
  values = json.loads(beside.read_text())
  assert (values["rope_theta"], values["rms_norm_eps"]) == (1e4, 1e-5)

  # Without that file, its name stands for nothing.
  moved = beside.rename(tmp_path / "given.json")
  refused(tmp_path / "out", "pretrained_model_name_or_path", "--backbone-config")
  model = describe(tmp_path / "out", backbone_config=moved)["config"]["model"]
  assert (model["rotary_base"], model["norm_epsilon"]) == (1e4, 1e-5)
  arguments = [str(tmp_path / "out"), f"--backbone-config={moved}"]
  assert cli.main(["inspect", *arguments]) == 0
  assert (
    "note: rope_theta 10000.0, rms_norm_eps 1e-05: of given" in capsys.readouterr().out
  )
  assert cli.main(["convert", *arguments, str(tmp_path / "again")]) == 0
  meta = open_source(tmp_path / "again").reader.meta
  assert meta["qwen3"] == values
  assert any("rope_theta 10000.0" in note for note in meta["source"]["notes"])
  convert(tmp_path / "again", tmp_path / "last")
  assert json.loads((tmp_path / "last" / "backbone_config.json").read_text()) == values

  for change in ({"hidden_size": 8}, {"tie_word_embeddings": True, "head_dim": 4}):
    moved.write_text(json.dumps(values | change))
    assert cli.main(["inspect", *arguments]) == 2
    assert "as the tensors have" in capsys.readouterr().err
  for text in ("[]", "{", json.dumps(values | {"rope_theta": None})):
    moved.write_text(text)
    assert cli.main(["inspect", *arguments]) == 2
  capsys.readouterr()
  for arguments in (["inspect"], ["sample", "--checkpoint"]):
    assert (
      cli.main([*arguments, str(tmp_path / "run"), f"--backbone-config={moved}"]) == 2
    )
    assert "must be left out" in capsys.readouterr().err


def named(folder, name, **changes):
  """A published Qwen3 that names its configuration."""
  folder = reference("setdlm_qwen3", folder)
  (folder / "backbone_config.json").unlink()
  values = published("setdlm_qwen3")
  values["backbone_config"] |= {"pretrained_model_name_or_path": name, **changes}
  (folder / "config.json").write_text(json.dumps(values))
  return folder


@pytest.mark.parametrize(
  "name, base",
  [
    ("Qwen/Qwen3-0.6B", 1e6),
    ("Qwen/Qwen3-1.7B-Base", 1e6),
    ("Qwen/Qwen3-32B", 1e6),
    ("Qwen/Qwen3-4B-Instruct-2507", 5e6),
  ],
)
def test_names_that_stand_for_constants(tmp_path, name, base):
  folder = named(tmp_path / "q", name)
  noted(folder, f"of {name}")
  model = describe(folder)["config"]["model"]
  assert (model["rotary_base"], model["norm_epsilon"]) == (base, 1e-6)


@pytest.mark.parametrize(
  "name", ["Qwen/Qwen3-0.6b", "Qwen/Qwen2.5-0.5B", "/models/Qwen3-0.6B", "", None, 3]
)
def test_names_that_stand_for_nothing(tmp_path, name):
  refused(named(tmp_path / "q", name), "pretrained_model_name_or_path")


def test_arguments_of_the_wrapper_change_the_constants(tmp_path):
  folder = named(tmp_path / "q", "Qwen/Qwen3-0.6B", rope_theta=1e4, hidden_size=32)
  assert describe(folder)["config"]["model"]["rotary_base"] == 1e4
  for change in (
    {"hidden_size": 64},
    {"rope_scaling": {"type": "yarn"}},
    {"num_layers": 1},
    {"use_causal_mask": True},
    {"some_argument": 1},
  ):
    (name,) = change
    folder = named(tmp_path / name, "Qwen/Qwen3-0.6B", **change)
    refused(folder, f"backbone_config.{name}")


def test_the_wrapped_configuration_of_the_reference(tmp_path):
  found = describe(ROOT / "models" / "setdlm_qwen3")
  assert not found["config"]["model"]["tied"]


# Layouts with a DiT.

DIT_CHANGES = [
  *({"backbone_config": {"num_layers": n}} for n in (1, 3, 2.0, 10**9)),
  {"backbone_config": {"hidden_size": 64}},
  {"backbone_config": {"vocab_size": 63}},
  {"backbone_config": {"n_heads": 0}},
  *({"backbone_config": {"dropout": x}} for x in (1, -0.1, "0")),
  {"backbone_config": {"_target_": "src.backbone.dit.DITx"}},
  {"backbone_config": {"is_esolm_backbone": True}},
  {"backbone_config": {"qk_norm": True}},
  {"noise_config": {"power": 2}},
  *({"noise_config": {"max_block_size": x}} for x in (33, 1e300, 0, "8")),
  {"shift_logits": True},
  {"time_conditioned_backbone": True},
  {"model_type": "mdlm"},
  {"architectures": ["SetDLM", "AR"]},
  {"architectures": [["SetDLM"]]},
  {"block_size": 16},
  {"eval_block_size": 4},
  {"length": 0},
  {"length": 2**21},
  {"length": True},
  {"label_smoothing": 0.1},
  {"mdlm_loss_scale": "true"},
  {"quantization_config": {"bits": 8}},
  *({"mask_token_id": x} for x in (True, 63.0, -1, None)),
  {"eos_token_id": [61, 64]},
  {"tokenization_config": {"mask_token_id": 5}},
]


@pytest.mark.parametrize("change", DIT_CHANGES, ids=str)
def test_a_field_of_a_published_file(tmp_path, change):
  ((name, value),) = change.items()
  folder = reference("setdlm_dit", tmp_path / "q")
  values = published("setdlm_dit")
  group = name.endswith("_config") and name != "quantization_config"
  values[name] = values[name] | value if group else value
  if name == "mask_token_id":
    values["tokenization_config"] = None
  (folder / "config.json").write_text(json.dumps(values))
  refused(folder, next(iter(value)) if group else name, "must be")


OLDER = {
  "adaln": True,
  "block_size": 4,
  "cond_dim": 16,
  "hidden_dim": 32,
  "n_heads": 4,
  "model_length": 32,
  "n_blocks": 2,
  "time_conditioning": False,
  "vocab_size": 64,
  "model_type": "bd3lm",
  "cross_attn": True,
  "var_min": True,
  "dropout": 0.1,
}


@pytest.mark.parametrize(
  "change",
  [
    *({"n_blocks": n} for n in (1, 10**9, 2.0)),
    {"hidden_dim": 16},
    {"vocab_size": 60},
    {"causal": True},
    {"cross_attn": False},
    {"model_type": "udlm"},
    {"cfg": True},
    {"mask_token_id": 5},
    {"model_length": -1},
    {"model_length": 2**31 - 1},
    {"sampling_eps_min": True},
  ],
  ids=str,
)
def test_a_field_of_an_older_file(tmp_path, change):
  folder = reference("setdlm_dit_adaln", tmp_path / "q")
  (folder / "config.json").write_text(json.dumps(OLDER))
  assert describe(folder)["config"]["method"]["block_size"] == 4
  (folder / "config.json").write_text(json.dumps(OLDER | change))
  refused(folder, *change, "must be")


# generation_config.json.

# Of the released Qwen3 models.
GENERATION = {
  "bos_token_id": 151643,
  "do_sample": True,
  "eos_token_id": [5, 2],
  "top_k": 20,
  "pad_token_id": 1,
  "temperature": 0.6,
  "top_p": 0.95,
  "transformers_version": "4.51.0",
}


def generation(folder, **changes):
  plain(folder)
  (folder / "generation_config.json").write_text(json.dumps(GENERATION | changes))
  return folder


def test_what_a_generation_configuration_says(tmp_path):
  folder = generation(tmp_path / "q", repetition_penalty=1.1, min_new_tokens=3)
  decode = describe(folder)["config"]["decode"]
  assert (decode["temperature"], decode["top_k"], decode["top_p"]) == (0.6, 20, 0.95)
  assert (decode["repetition_penalty"], decode["minimum_length"]) == (1.1, 3)
  noted(folder, "eos_token_id of generation_config.json: 2 ids; 2 ends a text")
  greedy = describe(generation(tmp_path / "r", do_sample=False))["config"]["decode"]
  assert (greedy["temperature"], greedy["top_k"], greedy["top_p"]) == (0, None, None)
  folder = generation(tmp_path / "s", confidence_threshold=0.9, num_steps=8)
  noted(folder, "confidence_threshold of generation_config.json: is not followed")


@pytest.mark.parametrize(
  "change",
  [
    *({"temperature": x} for x in (0, -1.0, "0.6", True)),
    *({"top_k": x} for x in (-1, 20.0, True)),
    *({"top_p": x} for x in (0, 1.5, "0.9")),
    {"repetition_penalty": 0},
    {"num_beams": 4},
    {"bad_words_ids": [[3]]},
    {"guidance_scale": 1.5},
    {"forced_eos_token_id": 2},
    {"no_repeat_ngram_size": 3},
    {"eos_token_id": [2, 32]},
    {"eos_token_id": True},
    {"mystery": 1},
  ],
  ids=str,
)
def test_a_field_that_would_change_the_samples(tmp_path, change):
  refused(generation(tmp_path / "q", **change), "generation_config.json", *change)


def test_every_released_layout_of_the_reference_is_read():
  for path in sorted(pathlib.Path(ROOT, "models").glob("*/model.safetensors")):
    assert describe(path.parent)["parameters"]
