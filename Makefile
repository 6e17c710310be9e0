# make demo   a virtual environment, then the whole way on a made-up slide
# make test   the same environment, then the tests
# make bindings   what only tests look at: TensorRT's Python bindings, a tritonserver
# make check  formatting, lint, types
# make browser     Chromium, by which the tests open the pages, on Debian; without it they skip
# make gpu-check   the tests that need a CUDA device, and the benchmarks there: one JSON within eight minutes, from
#                  whatever PYTHON has; what is missing is said, and nothing is fetched

PYTHON ?= python3
# Files of tests at once; each takes a core, and some of them all.
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test bindings check browser gpu-check clean

demo: $(VENV)/installed
	$(BIN)/mclst-demo --out mclst-demo --overwrite

test: $(VENV)/installed bindings
	$(BIN)/pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

bindings: build/tensorrt/installed build/tritonserver/installed

check: $(VENV)/installed build/as/mclst
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --allow-untyped-defs --allow-incomplete-defs --allow-untyped-calls --no-warn-return-any \
		--no-warn-unused-ignores --implicit-reexport --disable-error-code func-returns-value tests

browser:
	command -v chromium > /dev/null || { apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium > /dev/null; }

gpu-check: build/as/mclst
	PYTHONPATH=build/as $(PYTHON) -m mclst.benchmarks.gpu_check.run

$(VENV)/installed: pyproject.toml constraints.txt setup.py runtime/report/page/openseadragon.py $(wildcard kernels/cpu/src/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[cpu,openvino,rtx,export,openslide,dev]"
	$(BIN)/python -m mclst.runtime.report.page.openseadragon || echo "without the pages' viewer: their tests will skip"
	touch $@

# Bindings whose names a test looks at; where there is no wheel for this Python, that test skips.
build/tensorrt/installed: tests/tensorrt-bindings.txt $(VENV)/installed
	while read -r package; do $(BIN)/pip install --quiet --no-deps --upgrade \
		--target build/tensorrt/$${package##*=} $$package || echo "without $$package"; done < $<
	touch $@

# A tritonserver for tests on loopback, without what its package wants beside it; where there is no wheel, they skip.
build/tritonserver/installed: tests/tritonserver.txt $(VENV)/installed
	$(BIN)/pip install --quiet --no-deps --only-binary :all: --upgrade --target build/tritonserver -r $< || echo "without tritonserver"
	mkdir -p $(@D) && touch $@

# Type checkers resolve `mclst.<folder>` through this link.
build/as/mclst:
	mkdir -p build/as && ln -sfn ../.. $@

clean:
	rm -rf $(VENV) build mclst-demo mclst-bundle
