# make demo       the main job on the packaged data, in a fresh .venv
# make test       all checks and tests, in .venv
# make check      the same in the current environment
# make test-slow  the long tests, then test-lowest
# make test-lowest  the tests with the lowest versions that settings.ini allows, in .venv-lowest
# make test-newest  the tests with the newest release of everything, in a fresh .venv-newest; PYTHON=python3.13 takes another interpreter
# make docs      the site, in _docs/; make preview also serves it
# make fix        export, clean and README again after an edit of a notebook

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
DEMO_OUT ?=
PORT ?= 8000
METADATA = settings.ini setup.py pyproject.toml constraints.txt

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
export OMP_NUM_THREADS ?= 2

.PHONY: demo test check test-slow check-slow fix test-lowest test-newest readme docs preview dist clean benchmarks
.NOTPARALLEL:

demo: $(VENV)/.installed
	env -u OMP_NUM_THREADS $(VENV)/bin/sft_nb demo $(if $(DEMO_OUT),--out $(DEMO_OUT))

test: $(VENV)/.installed-dev
	@$(MAKE) --no-print-directory check BIN=$(VENV)/bin/

test-slow: $(VENV)/.installed-dev
	@$(MAKE) --no-print-directory check-slow BIN=$(VENV)/bin/
	@$(MAKE) --no-print-directory test-lowest

# BIN is empty for the current environment, else a path that ends in a slash
check:
	@tools/stage ruff $(BIN)ruff check .
	@tools/stage agree $(BIN)python tools/agree.py
	@OMP_NUM_THREADS=1 tools/stage notebooks $(BIN)nbdev-test --n-workers $(WORKERS) --do-print
	@tools/chromium
	@OMP_NUM_THREADS=1 tools/stage pytest $(BIN)python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow"

check-slow:
	@tools/stage notebooks-slow $(BIN)nbdev-test --n-workers 1 --flags slow --cell-timeout 3600 --do-print
	@tools/chromium
	@tools/stage pytest-slow $(BIN)python -m pytest -m slow

test-lowest: $(VENV)/bin/python
	$(PYTHON) -m venv $(VENV)-lowest
	@tools/stage install-lowest $(VENV)-lowest/bin/python -m pip install -q -c constraints-lowest.txt -e '.[dev-lowest]'
	@tools/chromium
	@OMP_NUM_THREADS=1 tools/stage pytest-lowest $(VENV)-lowest/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow"

# -U and eager: also what others ask for; no constraint and no pre-release, whatever the configuration of pip says
test-newest: $(VENV)/bin/python
	$(PYTHON) -m venv --clear $(VENV)-newest
	@PIP_CONSTRAINT= PIP_PRE=0 tools/stage install-newest $(VENV)-newest/bin/python -m pip install -q -U --upgrade-strategy eager -e '.[dev]'
	@tools/chromium
	@OMP_NUM_THREADS=1 tools/stage pytest-newest $(VENV)-newest/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow"

fix:
	$(BIN)nbdev-export
	$(BIN)nbdev-clean
	$(BIN)python tools/readme.py

readme:
	$(BIN)python tools/readme.py

docs: $(VENV)/.installed-dev
	@tools/stage docs $(VENV)/bin/python -m docs_site.build

preview: $(VENV)/.installed-dev
	$(VENV)/bin/python -m docs_site.build --preview $(PORT)

dist:
	rm -rf dist
	$(BIN)python -m build
	$(BIN)python -m twine check --strict dist/*

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3,11) and f"sft_nb needs Python 3.11 or newer, this is {sys.version.split()[0]}: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(METADATA) | $(VENV)/bin/python
	@tools/stage install $(VENV)/bin/python -m pip install -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(METADATA) | $(VENV)/bin/python
	@tools/stage install $(VENV)/bin/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf build dist *.egg-info _proc _docs .pytest_cache .ruff_cache

benchmarks:
	$(BIN)python benchmarks/run.py tune head whole fine_tune peak gradual step scratch table
