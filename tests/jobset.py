"""The fields of a JobSet and their types, as Kubernetes checks them.

`python -m tests.jobset CRD.yaml` writes jobset.json again from the custom resource
definition, of which a cluster with JobSet has the file:
`kubectl get crd jobsets.jobset.x-k8s.io --output=yaml`.

jobset.json is a list of objects, the first of which is the JobSet itself: the type of
each field by its name, with a ! where it is required. A type is string, integer,
number, boolean, object (of anything) or quantity (a number or a string); "#3" is the
object at place 3, [TYPE] a list, {TYPE} a map from strings, and a|b one of these words.
"""

import json
import pathlib
import sys
from collections.abc import Iterator

import yaml

FILE = pathlib.Path(__file__).with_name("jobset.json")
KINDS = {
  "string": str,
  "integer": int,
  "number": int | float,
  "boolean": bool,
  "object": dict,
  "quantity": int | str,
}


def table(definition: dict) -> list[dict[str, str]]:
  """The contents of jobset.json, from a parsed definition."""
  (schema,) = [
    version["schema"]["openAPIV3Schema"]
    for version in definition["spec"]["versions"]
    if version["name"] == "v1alpha2"
  ]
  places: dict[str, int] = {}
  objects: list[dict[str, str]] = []

  def add(schema: dict) -> int:
    """The place of an object; equal ones share it."""
    required = schema.get("required", ())
    objects.append({})
    place = len(objects) - 1
    found = {
      name + "!" * (name in required): kind(value)
      for name, value in schema["properties"].items()
    }
    same = places.setdefault(json.dumps(found), place)
    if same != place:
      del objects[place:]
    else:
      objects[place] = found
    return same

  def kind(schema: dict) -> str:
    """The type of a field."""
    if schema.get("x-kubernetes-int-or-string"):
      return "quantity"
    if "enum" in schema:
      return "|".join(schema["enum"])
    if schema["type"] == "array":
      return f"[{kind(schema['items'])}]"
    if "properties" in schema:
      return f"#{add(schema)}"
    values = schema.get("additionalProperties")
    return f"{{{kind(values)}}}" if values else schema["type"]

  add(schema)
  return objects


def mistakes(manifest: dict) -> list[str]:
  """What Kubernetes would refuse in a JobSet, a line each: unknown fields, too."""
  return list(_mistakes("JobSet", manifest, "#0", json.loads(FILE.read_text())))


def _mistakes(where: str, value, kind: str, objects: list[dict]) -> Iterator[str]:
  """Of a value that must be of a type, with all that is inside it."""
  inside: list[tuple[str, object, str]] = []
  if kind.startswith("#") and isinstance(value, dict):
    fields = objects[int(kind[1:])]
    types = {name.rstrip("!"): type_ for name, type_ in fields.items()}
    yield from (f"{where}.{name}: is not a field" for name in value.keys() - types)
    required = {name[:-1] for name in fields if name.endswith("!")}
    yield from (f"{where}.{name}: is missing" for name in required - value.keys())
    known = [name for name in value if name in types]
    inside = [(f"{where}.{name}", value[name], types[name]) for name in known]
  elif kind.startswith("[") and isinstance(value, list):
    inside = [(f"{where}[{i}]", item, kind[1:-1]) for i, item in enumerate(value)]
  elif kind.startswith("{") and isinstance(value, dict):
    inside = [(f"{where}.{name}", item, kind[1:-1]) for name, item in value.items()]
  elif not _is(value, kind):
    yield f"{where} = {value!r}: must be {kind}"
  for part in inside:
    yield from _mistakes(*part, objects)


def _is(value, kind: str) -> bool:
  """Whether a value without parts is of a type."""
  if kind not in KINDS:
    return value in kind.split("|")
  return isinstance(value, KINDS[kind]) and isinstance(value, bool) == (
    kind == "boolean"
  )


def main() -> None:
  """Writes the table of a definition."""
  rows = table(yaml.safe_load(pathlib.Path(sys.argv[1]).read_text()))
  text = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
  FILE.write_text(f"[\n{text}\n]\n")


if __name__ == "__main__":
  main()
