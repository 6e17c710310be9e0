PYTHON ?= python3
# Test processes at once. Each computes on one thread: several would spin while they wait for a core.
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin

# Many processes import the same modules: each is compiled once.
export PYTHONDONTWRITEBYTECODE =

SMALL := tests/data/small
# What `make release-check` predicts, and where.
SLIDE ?= $(SMALL)/section/images/B1.png
PLACES ?= --spots $(CURDIR)/$(SMALL)/section/spots/B1_selection.tsv
# A clean environment keeps pip's own settings.
PIP_SETTINGS := $(foreach name,$(filter PIP_%,$(.VARIABLES)),$(name)="$($(name))")

.PHONY: help demo quick test stress imports bindings check docs browser wheel release-check gpu-check clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

demo:  ## create .venv with what the demo uses, and run it on a synthetic slide
	@test -e $(VENV)/installed || $(MAKE) --no-print-directory $(VENV)/demo
	$(BIN)/mclst-demo --out mclst-demo --overwrite

quick: $(VENV)/quick  ## fast tests within a minute, without torch: installs .[cpu,test] alone
	$(BIN)/pytest -m "not slow and not gpu" --numprocesses $(JOBS) --dist worksteal

# One process more than two cores: servers and clusters wait more than they compute.
test: JOBS = 3
test: $(VENV)/installed bindings  ## all tests
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

stress: $(VENV)/installed  ## tests that leave to chance where a fault strikes; minutes
	OMP_NUM_THREADS=1 $(BIN)/pytest -m stress

imports: $(VENV)/installed  ## collect all tests, which imports what they use
	$(BIN)/pytest --collect-only -q > /dev/null

bindings: build/tensorrt/installed build/tritonserver/installed  ## packages that only tests use: TensorRT bindings, tritonserver

check: $(VENV)/installed build/as/mclst docs  ## formatting, lint, spelling, types and the documentation's site
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy

docs: $(VENV)/installed  ## the documentation as a site, in build/site/html
	mkdir -p build/site/source/mclst
	for folder in benchmarks demo evaluation export kernels models runtime sections tl training; do \
		ln -sfn ../../../../$$folder build/site/source/mclst/$$folder; done
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=build/site/source $(BIN)/mkdocs build --strict --quiet

browser:  ## install Chromium (Debian); without it the browser tests skip
	command -v chromium > /dev/null || { apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium > /dev/null; }

wheel:  ## source distribution and wheel, in build/dist; needs a C++ compiler and npm
	rm -rf build/dist && $(PYTHON) -m venv build/release/tools
	build/release/tools/bin/pip install --quiet --constraint constraints.txt build
	$(PYTHON) runtime/report/page/openseadragon.py
	build/release/tools/bin/python -m build --outdir build/dist .

# The environment sees its own programs alone: no compiler, no npm, no source tree.
release-check: wheel  ## install the wheel in a clean environment and predict $$SLIDE with it
	rm -rf build/release/clean && $(PYTHON) -m venv build/release/clean
	cd build/release && env -i PATH="$(CURDIR)/build/release/clean/bin" HOME="$(CURDIR)/build/release" $(PIP_SETTINGS) \
		pip install --quiet --constraint $(CURDIR)/constraints.txt "$$(echo $(CURDIR)/build/dist/*.whl)[cpu]"
	cd build/release && env -i PATH="$(CURDIR)/build/release/clean/bin" HOME="$(CURDIR)/build/release" \
		python -I $(CURDIR)/tests/support/check_release.py $(abspath $(SLIDE)) $(CURDIR)/$(SMALL)/mclst-bundle \
		release.h5ad $(PLACES)

gpu-check: build/as/mclst  ## GPU tests and benchmarks, as one JSON, with the packages $PYTHON has; CHECK="--steps retrieval"
	PYTHONPATH=build/as $(PYTHON) -m mclst.benchmarks.gpu_check.run $(CHECK)

clean:  ## remove .venv and everything built
	rm -rf $(VENV) build mclst-demo mclst-bundle

$(VENV)/quick: pyproject.toml constraints.txt setup.py $(wildcard kernels/cpu/src/* runtime/decoding/src/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[cpu,test]"
	touch $@

# PyTorch for CPUs is a tenth in size; PyPI has it for macOS alone.
CPU_TORCH := $(shell sed -nE 's/^(torch|torchvision)==.*/&+cpu/p' constraints.txt)

$(VENV)/demo: pyproject.toml constraints.txt setup.py runtime/report/page/openseadragon.py $(wildcard kernels/cpu/src/* runtime/decoding/src/*)
	@echo "1/2 installing what the demo uses into $(VENV), a minute or two"
	@$(PYTHON) -m venv $(VENV)
	@test "$$(uname)" != Linux || $(BIN)/pip install --quiet --no-compile --constraint constraints.txt $(CPU_TORCH) \
		2> /dev/null || echo "  no PyTorch for CPUs in pip's indexes: taking the one with CUDA libraries, 5 GB"
	@bash -o pipefail -c '$(BIN)/pip install --no-compile --constraint constraints.txt --editable ".[cpu,export,lite]" \
		| awk "/^Collecting/ {print \"  \" \$$2; fflush()} /^Installing/ {print \"  unpacking them\"; fflush()}"'
	@$(BIN)/python -m mclst.runtime.report.page.openseadragon > /dev/null || echo "  without npm the demo makes no page"
	@touch $@
	@echo "2/2 running it"

$(VENV)/installed: pyproject.toml constraints.txt setup.py runtime/report/page/openseadragon.py $(wildcard kernels/cpu/src/* runtime/decoding/src/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt \
		--editable ".[cpu,openvino,rtx,export,openslide,docs,dev]"
	$(BIN)/python -m mclst.runtime.report.page.openseadragon || echo "the page viewer is missing: its tests will skip"
	touch $@

# A test compares names in these bindings; it skips where this Python has no wheel.
build/tensorrt/installed: tests/tensorrt-bindings.txt $(VENV)/installed
	while read -r package; do $(BIN)/pip install --quiet --no-deps --upgrade \
		--target build/tensorrt/$${package##*=} $$package || echo "without $$package"; done < $<
	touch $@

# A tritonserver for tests on loopback, without its dependencies; the tests skip where this Python has no wheel.
build/tritonserver/installed: tests/tritonserver.txt $(VENV)/installed
	$(BIN)/pip install --quiet --no-deps --only-binary :all: --upgrade --target build/tritonserver -r $< || echo "without tritonserver"
	mkdir -p $(@D) && touch $@

# Type checkers resolve `mclst.<folder>` through this link.
build/as/mclst:
	mkdir -p build/as && ln -sfn ../.. $@
