"""Configurations: one place for defaults and checks."""

import dataclasses
import pathlib

import pytest

from set_diffusion_jax.config import (
  Config,
  config_arguments,
  default_config,
  files,
)
from set_diffusion_jax.config.experiment import CHANGEABLE
from set_diffusion_jax.errors import UserError
from tests import tiny


def test_defaults_round_trip():
  assert Config.from_dict(default_config().to_dict()) == Config()
  assert Config.from_dict(Config().to_dict()) == Config()


@pytest.mark.parametrize("name", files.names())
def test_every_shipped_configuration_is_valid(name):
  by_path = f"--config={pathlib.Path(__file__).parents[1] / 'configs' / name}.py"
  assert files.read_config([f"--config={name}"]) == files.read_config([by_path])


def test_configurations_by_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  given = ["--config=quickstart:method=ar", "--config.train.steps=3"]
  config = files.read_config(given)
  assert (config.method.name, config.train.steps) == ("ar", 3)
  with pytest.raises(UserError) as error:
    files.read_config(["--config=quickstrat"])
  names = "corpora, quickstart, reproduction, scale"
  assert str(error.value) == (
    f"--config=quickstrat: no such file or name; the names are {names}"
  )
  file = tmp_path / "quickstart"  # a file of the user's own, and a name
  file.write_text("from set_diffusion_jax.config import default_config as get_config")
  with pytest.raises(UserError, match="is a file here and the name of"):
    files.read_config(["--config=quickstart"])
  assert files.read_config(["--config=./quickstart"]) == Config()


@pytest.mark.parametrize(
  "settings, words",
  [
    ({"modle": {}}, "modle is not a field; did you mean model?"),
    ({"model": {"dpeth": 1}}, "model.dpeth is not a field"),
    ({"model": 3}, "model = 3: must be a group"),
    ({"model": {"layers": 1.5}}, "model.layers = 1.5: must be of type int"),
    ({"model": {"layers": True}}, "model.layers = True: must be of type int"),
    ({"model": {"layers": None}}, "model.layers = None: must be of type int"),
    ({"model": {"dropout": float("nan")}}, "model.dropout = nan: must be finite"),
    ({"model": {"width": 6, "heads": 2}}, "model.heads = 2"),
    ({"train": {"batch_size": 6, "accumulate": 4}}, "train.batch_size = 6"),
    ({"train": {"seed": 2**32}}, "train.seed"),
    ({"data": {"source": "text"}}, "data.train_path = null"),
    *(
      (
        {group: {name: "gs://b/x.npy"}},
        f'{group}.{name} = "gs://b/x.npy": must be a path',
      )
      for group, name in [
        *(("data", "train_path"), ("data", "validation_path")),
        *(("data", "tokenizer"), ("evaluate", "order")),
      ]
    ),
    (
      {"data": {"directory": "s3://b/x"}},
      'data.directory = "s3://b/x": must be a path or gs://BUCKET/PATH; s3:// is not',
    ),
    (
      {"data": {"directory": "gs://bucket/x*"}},
      "data.directory = \"gs://bucket/x*\": a path in a bucket cannot have '*'",
    ),
    ({"method": {"max_set_size": 0.5}}, "method.max_set_size = 0.5"),
    ({"decode": {"window": 0}}, "decode.window = 0"),
    ({"decode": {"temperature": 1e-7}}, "decode.temperature = 1e-07: must be 0, or at"),
    ({"decode": {"temperature": -1.0}}, "decode.temperature = -1.0: must be 0, or at"),
    (
      {
        "method": {"name": "block"},
        "corruption": {"clip_width": 0.5, "schedule": "cosine"},
      },
      'corruption.schedule = "cosine": must be linear where a clip_width is searched',
    ),
    ({"mesh": {"data": 0}}, "mesh.data = 0"),
    ({"compat": "yes"}, 'compat = "yes": must be one of none, setdlms'),
  ],
)
def test_wrong_settings_are_named(settings, words):
  with pytest.raises(UserError) as error:
    Config.from_dict(settings)
  assert words in str(error.value)
  assert "\n" not in str(error.value)


def test_whole_numbers_are_fine_where_a_fraction_is_meant():
  assert Config.from_dict({"method": {"max_set_size": 4}}).method.max_set_size == 4.0


def test_identity_names_real_fields():
  known = {"mesh", "evaluate", "decode"}
  for group, fields in Config().to_dict().items():
    if isinstance(fields, dict):
      known |= {f"{group}.{name}" for name in fields}
  assert known >= CHANGEABLE
  identity = Config().identity()
  assert "model.width" in identity
  assert "train.steps" not in identity and "train.accumulate" not in identity
  assert "train.steps" in tiny.config(optimizer__schedule="cosine").identity()
  assert not {name.split(".")[0] for name in identity} & {"mesh", "decode"}


def test_arguments_of_configuration_files():
  assert config_arguments("", a="1").a == "1"
  assert config_arguments("b=3,a=2", a="1", b="0").__dict__ == {"a": "2", "b": "3"}
  with pytest.raises(UserError, match="known: a="):
    config_arguments("c=1", a="1")


def test_configurations_are_frozen():
  with pytest.raises(dataclasses.FrozenInstanceError):
    Config().model.width = 3


@pytest.mark.parametrize("field, beside, words", [
  ("corruption", {"corruption": {"t_min": 0.1}}, "corruption.t_min=0.1"),
  ("corruption", {"corruption": {"t_max": 0.9}}, "corruption.t_max=0.9"),
  ("corruption", {"corruption": {"clip_width": 0.5}}, "corruption.clip_width=0.5"),
  ("corruption", {"corruption": {"schedule": "cosine"}}, "schedule=cosine"),
  ("corruption", {"method": {"name": "set", "predict": "active"}}, "predict=active"),
  ("corruption", {"loss": {"weighting": "uniform"}}, "loss.weighting=uniform"),
  ("corruption", {"compat": "setdlms"}, "compat=setdlms"),
  ("corruption", {"method": {"name": "set"}}, "method set, which has no noise levels"),
  ("evaluate", {"corruption": {"clip_width": 0.5}}, "corruption.clip_width=0.5"),
  ("evaluate", {"compat": "setdlms"}, "compat=setdlms"),
  ("evaluate", {"method": {"name": "ar"}}, "null for method ar"),
])  # fmt: skip
def test_counts_are_refused_beside_what_needs_levels(field, beside, words):
  settings = {"method": {"name": "masked"}, **beside}
  assert Config.from_dict(settings).evaluation_levels != "counts" or field != "evaluate"
  settings[field] = {**settings.get(field, {}), "levels": "counts"}
  with pytest.raises(UserError, match=f'{field}.levels = "counts": must be') as error:
    Config.from_dict(settings)
  assert words in str(error.value) and "\n" not in str(error.value)


def test_how_evaluation_draws():
  of = lambda **settings: Config.from_dict(settings).evaluation_levels
  masked = {"name": "masked"}
  assert of(method=masked) == "counts"
  assert of(method=masked, evaluate={"levels": "uniform"}) == "uniform"
  assert of(method=masked, compat="setdlms") == "uniform"
  assert of(method=masked, corruption={"clip_width": 0.5}) == "uniform"
  # Settings of training alone, on which evaluation does not depend.
  trained = {"corruption": {"t_min": 0.3, "schedule": "cosine"}}
  assert of(method=masked, loss={"weighting": "uniform"}, **trained) == "counts"
  assert of(method={"name": "general", "noise": "level"}) == "counts"
  assert of(method={"name": "general"}) is None
  assert of(method={"name": "set", "predict": "active"}) is None
  with pytest.raises(
    UserError, match=r"evaluate.levels.*must be one of uniform, count"
  ):
    of(method=masked, evaluate={"levels": "many"})
