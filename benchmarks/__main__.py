"""Runs one benchmark by name, prints its figures and can write them as JSON."""

import argparse
import importlib
import json
import pathlib

# Name -> module; each has a `main()` that returns figures as plain JSON values.
BENCHMARKS = {
  name: f"benchmarks.{name}"
  for name in (
    "train",
    "evaluate",
    "attention",
    "loss",
    "decode",
    "data",
    "convert",
    "storage",
    "restart",
  )
}


def main() -> None:
  """`python -m benchmarks NAME [--output FILE.json]`."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
  parser.add_argument("name", choices=BENCHMARKS)
  parser.add_argument("--output", type=pathlib.Path, help="JSON file for the figures")
  arguments = parser.parse_args()
  figures = importlib.import_module(BENCHMARKS[arguments.name]).main()
  text = json.dumps(figures, indent=2)
  print(text)
  if arguments.output is not None:
    arguments.output.write_text(text + "\n")


if __name__ == "__main__":
  main()
