# `make quickstart` and `make test` need nothing but Python 3.11 or newer. They use the
# active virtual environment, or make one in .venv.
PYTHON ?= python3
ENVIRONMENT := $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),.venv)
RUN := $(ENVIRONMENT)/bin/python
INSTALLED := $(ENVIRONMENT)/.set-diffusion-installed

# A process a core; the tests of a file stay together, they share what they compile.
PARALLEL := --numprocesses=auto --maxprocesses=8 --dist=loadfile

.PHONY: quickstart test test-all lint

quickstart: $(INSTALLED)
	$(RUN) launch/quickstart.py

test: $(INSTALLED)
	$(RUN) -m pytest $(PARALLEL) -m "not slow"

test-all: $(INSTALLED)
	$(RUN) -m pytest $(PARALLEL)

lint: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

$(INSTALLED): setup.py
	test -x $(RUN) || $(PYTHON) -m venv $(ENVIRONMENT)
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@
