"""The table of costly tests names tests that there are."""

import ast
import pathlib

import pytest

from tests import quick


def test_every_name_is_that_of_a_test():
  folder = pathlib.Path(__file__).parent
  for name in quick.CASES:
    file, test = name.split("::")
    tree = ast.parse((folder / file).read_text())
    assert test in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, name


@pytest.mark.parametrize("case, slow", [("set", False), ("ar", True), (None, True)])
def test_cases_that_are_not_listed_are_slow(case, slow):
  where = ("test_generate.py", "test_stops")
  assert quick.is_slow(*where, case) is slow
  assert not quick.is_slow("test_generate.py", "another", case)
