# make demo: set-up, build, train SimCLR, evaluate, pictures.   make test: set-up, build, every test this machine can run.
PYTHON ?= python3
BIN := .venv/bin
# Test processes side by side; one thread each, since OpenMP threads that wait for each other's cores cost minutes.
JOBS ?= $(shell n=$$(nproc); echo $$((n < 8 ? n : 8)))

.PHONY: demo test races bench docs dist dist-check lint setup clean

demo: .venv/.built .venv/.train
	$(BIN)/fastssl train simclr --out runs/demo $(DEMO)

# Two runs, since Triton's interpreter is chosen when Triton is imported. pytest's status 5: PYTEST="-k ..." chose no test of one run.
test: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST) || [ $$? -eq 5 ]
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 CUDA_VISIBLE_DEVICES= \
		$(BIN)/python -m pytest -n $(JOBS) $(PYTEST) tests/without_gpu/interpreted || [ $$? -eq 5 ]

# Races and bounds of the Triton kernels, on a CPU, in an environment of its own. Before a release and before a GPU is used.
races: .venv-races/.ready
	OMP_NUM_THREADS=1 .venv-races/bin/python -m tests.races -n $(JOBS) $(PYTEST)
	.venv-races/bin/python -m tests.races.passes

bench: .venv/.dev
	$(BIN)/fastssl bench $(BENCH)

# The documentation site, in build/site. A broken link, or an argument that a docstring names and the function lacks, fails.
docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The site is in build/site; its search needs a server: cd build/site && python3 -m http.server"

# The sources' archive and the two wheels, in dist/. Only what has changed since the last time is compiled again.
dist: .venv/.dist
	$(BIN)/python -m tests.dist build

# Installs each of them into fresh environments and runs a part of the tests there: DIST="--python 3.12 --torch 2.13.0 --form wheel".
dist-check: dist
	$(BIN)/python -m tests.dist check $(DIST)

lint: .venv/.dev docs
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/clang-format --dry-run -Werror $$(git ls-files 'csrc/*')

setup: .venv/.dev

.venv/bin/python:
	$(PYTHON) -m venv .venv

# LOCKED=1 first installs all but torch from files with the hashes of requirements/hashes.txt, and none without such a hash.
.venv/.base: requirements/base.txt | .venv/bin/python
	$(if $(LOCKED),$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements/hashes.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/base.txt
	touch $@

# An editable install: the compiled kernels are built into the source tree. They belong to one torch: another one builds them anew.
.venv/.built: .venv/.base setup.py pyproject.toml $(shell find csrc -type f) $(wildcard .venv/lib/python*/site-packages/torch/version.py)
	@echo "Compiling the kernels: three minutes on 2 idle cores, five with nvcc. FASTSSL_BUILD=cpu leaves out CUDA."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

# pip unpacks on one core: `make -j2 setup` compiles meanwhile.
.venv/.train: .venv/.base requirements/train.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/train.txt
	touch $@

# Peers and their image libraries come without dependencies: those would replace torch by a CUDA build.
.venv/.packages: .venv/.train requirements/dev.txt requirements/peers.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/peers.txt
	touch $@

.venv/.dev: .venv/.built .venv/.packages
	touch $@

.venv/.docs: requirements/docs.txt requirements/dev.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/docs.txt $$(grep -h '^ruff==' requirements/dev.txt)
	touch $@

.venv-races/.ready: requirements/races.txt requirements/base.txt requirements/dev.txt
	$(PYTHON) -m venv .venv-races
	.venv-races/bin/python -m pip install --quiet --disable-pip-version-check \
		$$(grep -hE '^(torch|numpy|pytest|pytest-xdist)==' requirements/base.txt requirements/dev.txt)
	.venv-races/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python -r requirements/races.txt
	touch $@

.venv/.dist: .venv/.base requirements/dist.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/dist.txt
	touch $@

clean:
	rm -rf .venv .venv-races build dist runs fastssl/*.so fastssl/_build.json *.egg-info
