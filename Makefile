# `make quickstart` and `make test` need nothing but Python 3.11 or newer. They use the
# active virtual environment, or make one in .venv.
PYTHON ?= python3
ENVIRONMENT := $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),.venv)
RUN := $(ENVIRONMENT)/bin/python
INSTALLED := $(ENVIRONMENT)/.set-diffusion-installed

# A process a core; tests next to each other stay together, they share what they compile.
PARALLEL := --numprocesses=auto --maxprocesses=8 --dist=worksteal --durations=15

.PHONY: quickstart test test-all lint

quickstart: $(INSTALLED)
	$(RUN) launch/quickstart.py

test: $(INSTALLED)
	$(RUN) -m pytest $(PARALLEL) -m "not slow"

# Jobs of several processes need the cores for themselves: one after another, at the end.
test-all: $(INSTALLED)
	$(RUN) -m pytest $(PARALLEL) -m "not jobs"
	$(RUN) -m pytest --durations=15 -m jobs

lint: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

$(INSTALLED): setup.py
	test -x $(RUN) || $(PYTHON) -m venv $(ENVIRONMENT)
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@
