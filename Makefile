# make demo: set-up, build, train SimCLR, evaluate, pictures.   make test: set-up, build, every test this machine can run.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test bench lint setup clean

demo: .venv/.train
	$(BIN)/fastssl train simclr --out runs/demo $(DEMO)

test: .venv/.dev
	$(BIN)/python -m pytest $(PYTEST)

bench: .venv/.dev
	$(BIN)/fastssl bench $(BENCH)

lint: .venv/.dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/clang-format --dry-run -Werror $$(git ls-files 'csrc/*')

setup: .venv/.dev

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.base: requirements/base.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/base.txt
	touch $@

# An editable install: the compiled kernels are built into the source tree.
.venv/.built: .venv/.base setup.py pyproject.toml $(shell find csrc -type f)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

.venv/.train: .venv/.built requirements/train.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/train.txt
	touch $@

# Peers and their image libraries come without dependencies: those would replace torch by a CUDA build.
.venv/.dev: .venv/.train requirements/dev.txt requirements/peers.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/peers.txt
	touch $@

clean:
	rm -rf .venv build runs fastssl/*.so *.egg-info
