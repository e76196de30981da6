PYTHON ?= python3
PY := .venv/bin/python
INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check

.PHONY: setup setup-report report setup-private private-wheels run compare test test-slow test-parity test-aot lint docs dist aot bench-attention bench-train-step

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
	@$(PY) -c 'import platform, sys; from pip._vendor.packaging.requirements import Requirement; (engine,) = [Requirement(line.partition("#")[0]) for line in open("requirements-private.txt") if line.startswith("spu")]; sys.exit(None if engine.marker.evaluate() else "error: the two-party engine has wheels for CPython 3.11 on Linux (x86-64) and on Apple silicon, and .venv is CPython %s on %s: rm -r .venv, then make PYTHON=python3.11 setup-private" % (platform.python_version(), platform.platform(terse=True)))'

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

# PyTorch and transformers, the GPT-2 that ours is held against, in an environment of their own: tensorboardX imports
# PyTorch wherever it is, and every command would wait for it.
.venv-parity/installed: requirements.txt requirements-dev.txt requirements-parity.txt
	$(PYTHON) -m venv .venv-parity
	@echo "installing requirements-parity.txt into .venv-parity (two minutes) …"
	.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-parity.txt
	@touch $@

test-parity: .venv-parity/installed
	.venv-parity/bin/python -m pytest -q -m slow tests/interop tests/test_examples.py

test-slow: .venv/installed-dev .venv/installed-private browser test-parity
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
	.venv/bin/mypy

# The pages of the API, the guides and the results: site/index.html.
docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet --strict

.venv/installed-docs: requirements-docs.txt .venv/installed
	$(INSTALL) -r requirements-docs.txt
	@touch $@

# What is put on a package index: dist/
dist: .venv/installed-dev
	rm -rf build dist
	$(PY) -m build
