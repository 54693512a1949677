"""Configurations: one place for defaults and checks."""

import dataclasses
import pathlib

import pytest

from set_diffusion_jax.config import (
  Config,
  config_arguments,
  default_config,
)
from set_diffusion_jax.config.experiment import CHANGEABLE
from set_diffusion_jax.errors import UserError
from tests import tiny


def test_defaults_round_trip():
  assert Config.from_dict(default_config().to_dict()) == Config()
  assert Config.from_dict(Config().to_dict()) == Config()


def test_every_shipped_configuration_is_valid():
  import importlib.util

  root = pathlib.Path(__file__).parents[1] / "configs"
  files = sorted(root.glob("*.py"))
  assert files
  for path in files:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    Config.from_dict(module.get_config().to_dict())


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
    ({"train": {"seed": 2**31}}, "train.seed"),
    ({"data": {"source": "text"}}, "data.train_path = null"),
    ({"method": {"max_set_size": 0.5}}, "method.max_set_size = 0.5"),
    ({"decode": {"window": 0}}, "decode.window = 0"),
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
  assert "train.steps" not in identity
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
