# `make demo` and `make test` need Debian with python3, its venv module and make; `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo-data
WORKERS ?= 2
# Packages that pip has fetched are kept between checkouts.
export PIP_CACHE_DIR ?= $(HOME)/.cache/tarmill-pip
export PIP_DISABLE_PIP_VERSION_CHECK := 1
PIP := $(BIN)/python -m pip install --quiet

PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup
BENCH := $(BIN)/python bench/run.py

.PHONY: help demo demo-kube test quick test-full test-readers lint crds docs bench bench-check bench-large bench-operator clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo         a small real data set through htmapper, htshuffle, htsort and htextract'
	@echo 'make demo-kube    the same as resources on a Kubernetes node that is made for it; root on Debian'
	@echo 'make test         all tests, and of the long ones a sample that changes daily; makes what they need first'
	@echo 'make quick        the tests of formats, planning, stores and operator without servers; under a minute'
	@echo 'make test-full    all tests, the long ones too'
	@echo 'make test-readers  reads the by-products of --index by energon and timm, whose packages take 5 GB'
	@echo 'make lint         ruff, mypy, the import contracts'
	@echo 'make kube-node    compile the Kubernetes node of the tests, once for this machine: 7-13 minutes'
	@echo 'make kube-images  the container images of runner, operator and web storage, for the tests'
	@echo 'make lock         their lock files from pyproject.toml; LOCK=--upgrade for the newest releases'
	@echo 'make crds         write crds/ again, from the specs, and their copies in the chart'
	@echo 'make manifests    write the generated files of deploy/ again, from the chart'
	@echo 'make docs         write the generated parts of docs/ again'
	@echo 'make bench-check  the benchmark, with 3 GB on the disk and 6 GB of memory; fails on ratios'
	@echo 'make bench        the whole benchmark, and docs/benchmark.md from it'
	@echo 'make bench-large  shuffle and sort of 1 to 20 GB in 512 MB of memory; takes an hour and 70 GB of disk'
	@echo 'make bench-operator  1,000 resources on a control plane with simulated pods, start times on a node; 6 minutes'
	@echo 'make clean        remove what these made'

# -- what the rest needs ----------------------------------------------------------------------------------------------

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is $$($(PYTHON) -V 2>&1); tarmill needs Python 3.11 or newer: make PYTHON=/path/to/python3" >&2; \
		exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo 'could not make $(VENV); on Debian: apt-get install python3-venv' >&2; exit 1; }
	@touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml
	@echo 'installing tarmill with what the demo needs into $(VENV)'
	@$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.test: $(VENV)/.made pyproject.toml
	@echo 'installing tarmill with what the tests need into $(VENV)'
	@$(PIP) --editable '.[test]'
	@touch $@ $(VENV)/.demo

.PHONY: nginx kube-node kube-images lock
nginx:
	@.ci/need-nginx

kube-node:
	@.ci/need-kube

kube-images: $(VENV)/.made kube-node
	@$(BIN)/python tests/support/images.py

lock: $(VENV)/.made
	@$(PIP) 'uv>=0.9'
	.ci/lock $(BIN)/uv $(LOCK)

# -- to see it work ---------------------------------------------------------------------------------------------------

$(DEMO)/digits-3.tar: examples/digits.py | $(VENV)/.demo
	@$(BIN)/python examples/digits.py $(DEMO)

demo: $(VENV)/.demo $(DEMO)/digits-3.tar
	$(BIN)/htmapper -p examples/invert.py --exists overwrite '$(DEMO)/digits-@4.tar' '$(DEMO)/inverted-@4.tar'
	$(BIN)/htshuffle --seed 1 --exists overwrite '$(DEMO)/inverted-@4.tar' '$(DEMO)/shuffled-@8.tar'
	$(BIN)/tarmill verify -q '$(DEMO)/inverted-@4.tar' '$(DEMO)/shuffled-@8.tar'
	$(BIN)/htsort -k cls:int --reduce count --exists overwrite '$(DEMO)/shuffled-@8.tar' '$(DEMO)/counts-@1.tar'
	$(BIN)/htextract -q '$(DEMO)/counts-@1.tar' -f value,count
	$(BIN)/htsort -k cls:int -r examples/average.py --exists overwrite '$(DEMO)/digits-@4.tar' '$(DEMO)/average-@1.tar'
	@echo
	@echo 'Look at $(DEMO): digits-*.tar went in, inverted-*.tar and shuffled-*.tar came out (tar -tf'
	@echo '$(DEMO)/shuffled-0.tar), counts-0.tar holds how many there are of each digit, average-0.tar what it looks'
	@echo 'like on average, inverted.manifest.json what inverted-*.tar holds; the scripts are in examples/, the guide'
	@echo 'is docs/index.md.'

demo-kube: $(VENV)/.test $(VENV)/.demo $(DEMO)/digits-3.tar kube-images
	@$(BIN)/python tests/e2e/kube/demo.py $(DEMO)/digits-?.tar

# -- to know that it works --------------------------------------------------------------------------------------------

test: $(VENV)/.test nginx kube-images
	@$(PYTEST) --long sample

# Whole jobs, processes, commands, rendered charts: what takes its time even without a server.
SLOW := jobs engine cli chart test_docs.py

quick: $(VENV)/.test
	@$(PYTEST) --long none -m 'not real' $(addprefix --ignore=tests/,$(SLOW))

test-full: $(VENV)/.test nginx kube-images
	@$(PYTEST) --long all

$(VENV)/readers/.made: $(VENV)/.made
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet megatron-energon timm
	@touch $@

test-readers: $(VENV)/.test $(VENV)/readers/.made
	@$(VENV)/readers/bin/python tests/support/own_readers.py $(BIN)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

crds: $(VENV)/.test
	$(BIN)/python -m tarmill_operator.crds crds
	$(BIN)/python -m tarmill_operator.crds charts/tarmill/charts/tarmill-crds/files/crds

.PHONY: manifests
manifests: $(VENV)/.test
	$(BIN)/python deploy/render.py

docs: $(VENV)/.test
	$(BIN)/python docs/generate.py

bench-check: $(VENV)/.test nginx
	$(BENCH) --check --json bench/out/check.json

bench: $(VENV)/.test nginx
	$(BENCH) --json bench/out/bench.json
	$(BIN)/python bench/report.py bench/out/bench.json --write docs/benchmark.md

bench-operator: $(VENV)/.test kube-images
	PYTHONPATH=tests $(BIN)/python bench/operator_bench.py --json bench/out/operator.json --write docs/kubernetes/performance.md

bench-large: $(VENV)/.test
	$(BIN)/python bench/large.py --json bench/out/large.json --write docs/performance.md

clean:
	rm -rf $(VENV) $(DEMO) bench/data bench/out build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
