PYTHON ?= python3
PY := .venv/bin/python
INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check

.PHONY: setup setup-report report setup-private private-wheels run compare test test-slow test-aot lint aot bench-attention bench-train-step

setup: .venv/installed

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv .venv

# The package itself is installed too, as these very files: `import entropy_attn` works from any folder.
.venv/installed: requirements.txt pyproject.toml | .venv/bin/python
	@echo "installing requirements.txt into .venv (about a minute) …"
	$(INSTALL) -r requirements.txt
	$(INSTALL) --no-deps --editable .
	@touch $@

setup-report: .venv/installed-report

.venv/installed-report: requirements-report.txt .venv/installed
	$(INSTALL) -r requirements-report.txt
	@touch $@

.venv/installed-dev: requirements.txt requirements-report.txt requirements-dev.txt pyproject.toml | .venv/bin/python
	@echo "installing requirements-dev.txt into .venv (about a minute) …"
	$(INSTALL) -r requirements-dev.txt
	$(INSTALL) --no-deps --editable .
	@touch $@ .venv/installed .venv/installed-report

setup-private: private-wheels .venv/installed-private

# Without this, pip would leave the engine out without a word and end well.
private-wheels: .venv/bin/python
	@$(PY) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "error: the two-party engine has wheels for CPython 3.11 alone, and .venv has %d.%d: rm -r .venv, then make PYTHON=python3.11 setup-private" % sys.version_info[:2])'

.venv/installed-private: requirements-private.txt .venv/installed
	$(INSTALL) --no-deps -r requirements-private.txt
	@touch $@

run: .venv/installed
	$(PY) -m entropy_attn.main --config=configs/quickstart.py --workdir=runs/quickstart

compare: .venv/installed
	$(PY) -m entropy_attn.study --study=configs/studies/compare.py --workdir=runs/compare

# A run or a study, to be looked at: make report WORKDIR=runs/compare
report: .venv/installed-report
	$(PY) -m entropy_attn.report --workdir=$(or $(WORKDIR),runs/quickstart)

# The browser of the report's tests: that of the system, else one that Playwright brings.
.PHONY: browser
browser: .venv/installed-dev
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || $(PY) -m playwright install chromium

test: .venv/installed-dev .venv/installed-private browser
	$(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# PyTorch and transformers: the GPT-2 that ours is held against.
.venv/installed-parity: requirements-parity.txt .venv/installed-dev
	@echo "installing requirements-parity.txt into .venv (about a minute) …"
	$(INSTALL) -r requirements-parity.txt
	@touch $@

test-slow: .venv/installed-dev .venv/installed-private .venv/installed-parity
	$(PY) -m pytest -q -m slow

# Compilers of chips that are not here have an environment of their own: jax would look for the chips.
.venv-aot/installed: requirements.txt requirements-dev.txt requirements-aot.txt
	$(PYTHON) -m venv .venv-aot
	@echo "installing requirements-aot.txt into .venv-aot (two minutes) …"
	.venv-aot/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-aot.txt
	@touch $@

aot: .venv-aot/installed
	.venv-aot/bin/python -m benchmarks.aot

test-aot: .venv-aot/installed
	.venv-aot/bin/python -m pytest -q -m slow tests/test_aot.py

.venv-bench/installed: requirements.txt requirements-bench.txt
	$(PYTHON) -m venv .venv-bench
	@echo "installing requirements-bench.txt into .venv-bench (two minutes) …"
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	@touch $@

bench-attention: .venv-bench/installed
	.venv-bench/bin/python -m benchmarks.attention

bench-train-step: .venv-bench/installed
	.venv-bench/bin/python -m benchmarks.train_step

lint: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
