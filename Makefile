# `make` lists the targets. Everything is installed into .venv, with uv where it is present.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
OLDEST := .venv-oldest
# Variables, since a comma would end an argument of $(call).
PROJECT := -e '.[train,test]'
OLDEST_TORCH := 'torch==2.6.*' 'torchvision==0.21.*'
DEMO := results_dir=demo/results checkpoint_dir=demo/checkpoints log_dir=demo/logs dataset.root=demo/datasets

.DEFAULT_GOAL := help

# The oldest Python that pyproject.toml allows; an older one fails deep inside pip (uv says so).
define check_python
$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "$(PYTHON) is Python %d.%d, expected 3.11 or later: make setup PYTHON=python3.12" % v[:2])'
endef

# install(venv, requirements): a fresh virtual environment with the project installed editable.
define install
if command -v uv >/dev/null 2>&1; then \
	uv venv --quiet --allow-existing --python $(PYTHON) $(1) && \
	uv pip install --quiet --python $(1)/bin/python $(2); \
else \
	$(check_python) && $(PYTHON) -m venv $(1) && $(1)/bin/python -m pip install --quiet $(2); \
fi
endef

.PHONY: help
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.PHONY: setup
setup: $(VENV)/.installed  ## create .venv and install everything into it

$(VENV)/.installed: pyproject.toml
	@echo "installing into $(VENV) (some GB with a CUDA build of torch) ..."
	@$(call install,$(VENV),$(PROJECT))
	@touch $@

.PHONY: demo
demo: setup  ## train VGG11-LRr on handwritten digits (about 2 minutes), everything under demo/
	@mkdir -p demo/datasets
	@$(RUN) train.py model=vgg11 variant=LRr dataset=digits recipe=demo $(DEMO)

.PHONY: test
test: setup  ## run the test suite (under 10 minutes on 2 cores)
	@$(RUN) -m pytest -q -n auto --dist loadgroup

.PHONY: test-all
test-all: setup  ## run the long tests: kills, fuzzing at full count (under 45 minutes)
	@$(RUN) -m pytest -q -m long

.PHONY: test-oldest
test-oldest:  ## run the unit tests on the oldest supported torch, in a separate environment
	@test -f $(OLDEST)/.installed || { \
		$(call install,$(OLDEST),$(PROJECT) $(OLDEST_TORCH)) && \
		touch $(OLDEST)/.installed; }
	@$(OLDEST)/bin/python -m pytest -q tests/unit tests/parity

.PHONY: lint
lint: setup  ## check style with ruff
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .

.PHONY: verify
verify: setup  ## evaluate the committed weights and compare them with the records
	@$(RUN) scripts/verify.py

.PHONY: certify
certify: setup  ## on a machine with a GPU: the CUDA tests, then each speed bar as met or missed
	@$(RUN) scripts/benchmark.py certify

.PHONY: tables
tables: setup  ## regenerate tables, claims, figures and studies from the records
	@$(RUN) scripts/report.py --strict tables figures claims studies

.PHONY: report
report: setup  ## the same, and one page with all results: results/report.html
	@$(RUN) scripts/report.py --strict

.PHONY: clean
clean:  ## remove the environments and the output of the demo; keep results and checkpoints
	rm -rf $(VENV) $(OLDEST) demo
