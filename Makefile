# Everything a newcomer types. Needs Python >= 3.11, make and a package registry.
#   make demo                     the whole loop on the embedded world
#   make demo SEED=7              the same with another seed
#   make test                     all tests that need no GPU
#   make check                    format, lint, types, layers
# Without a GPU, take the small CPU build of torch:
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: demo test check
demo: $(STAMP)
	$(BIN)/tercet run recipes/demo.toml $(if $(SEED),--seed $(SEED))

# Browser tests apart, for Playwright keeps an event loop running; times alone, on a machine at rest.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not gpu" --ignore tests/browser
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not timing" tests/browser
	$(BIN)/python -m pytest -m timing tests/browser

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/test_layers.py

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_ARGS) --constraint constraints.txt --editable '.[dev]'
	touch $@
