"""Python imports this at its start where this folder is in PYTHONPATH."""

from tests.chaos import victim

victim.enter()
