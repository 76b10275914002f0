# Every target prints the command that it runs, so that it can be copied and changed.
#   make stage1 stage2 stage3                             the whole paper on the embedded phantom
#   make stage1 DATA=mura ROOT=/data/MURA-v1.1            on real radiographs
#   make stage1 ARGS="seed=1 trainer.max_epochs=60"       with other settings (experiments/config.py)
#   make submit STAGE=stage1 GPUS=4 PARTITION=gpu         on a SLURM cluster (docs/cluster.md)
SHELL := bash
.DEFAULT_GOAL := help
.NOTPARALLEL:  # stages build on one another; two trainings at once would share the cores

PY := $(or $(PYTHON),.venv/bin/python)
READY := $(if $(PYTHON),,.venv/.ready)
# Albumentations, without this, asks PyPI for news when it is imported.
export NO_ALBUMENTATIONS_UPDATE := 1
# Tests on real radiographs, where there are some beside the checkout; empty: they are skipped.
export DECISION_BASIS_TEST_DATA ?= $(wildcard ../shared/data)

# A value as one word of the shell: ROOT may hold spaces and quotes.
# Through $(value), or make would look for variables of its own in ROOT=/data/$set.
quote = '$(subst ','\'',$(1))'
# With the blank before it, or nothing at all: $(strip) would also join the blanks within a value.
option = $(if $(value $(2)), $(1)=$(call quote,$(value $(2))))
more = $(if $($(1)), $($(1)))
SOURCE = $(call option,data.name,DATA)$(call option,data.root,ROOT)
RUN_NAME = $(call option,run.name,RUN)
NODE = $(call option,--gpus,GPUS)$(call option,--nodes,NODES)$(call option,--ranks,RANKS)
LIMITS = $(call option,--cpus,CPUS)$(call option,--time,TIME)$(call option,--account,ACCOUNT)
define RECIPE
	$(PY) -m experiments.train experiments/fractures.yaml $(SOURCE) seed=$(seed)$(if $(value RUN), run.name=$(call quote,$(value RUN)-seed$(seed)))$(call more,ARGS)

endef
EACH = $(call option,--seeds,SEEDS)$(call option,--lambdas,LAMBDAS)
CLUSTER = $(call option,--partition,PARTITION)$(NODE)$(LIMITS)$(EACH)$(call option,--sbatch-args,SBATCH_ARGS)

.PHONY: help setup test lint data stage1 stage2 stage3 evaluate report fractures sweep curve bench submit sync doctor

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@sed -n 's/^#://p' Makefile
#:
#:  DATA=phantom|mura|fracatlas|table
#:                                the source, the phantom unless given; table: docs/your-data.md
#:  ROOT=/path/to/data            its folder; the phantom needs none
#:  RUN=name                      name of the run; seed0 and the like unless given
#:  STAGE=stageN                  for data, evaluate, report and submit: this stage only
#:  ARGS="key=value ..."          any setting (experiments/config.py), and options of the command,
#:                                such as --compare, --peers quick, --audit for evaluate
#:  PYTHON=python                 an interpreter of your own instead of .venv
#:  DRY=1                         for submit and sync: print the commands, run none
#:  PARTITION= GPUS= NODES= RANKS= CPUS= TIME= ACCOUNT= SBATCH_ARGS= SEEDS="0 1" LAMBDAS="0 1"
#:                                for submit: the cluster, and a job each (docs/cluster.md);
#:                                SEEDS also for fractures

setup: $(READY)  ## install into .venv (with PYTHON=: into that environment)
	$(if $(PYTHON),$(PY) -m pip install -c constraints.txt -e '.[dev]')
test: $(READY)  ## run all tests
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 4 $(ARGS)
lint: $(READY)  ## check style, docstrings, annotations and types
	$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy
data: $(READY)  ## draw or check the data and decode it into the cache
	$(PY) -m experiments.train --data-only $(or $(STAGE),stage1) $(SOURCE)$(call more,ARGS)
stage1: $(READY)  ## train the classifier
stage2: $(READY)  ## train with guided attention
stage3: $(READY)  ## train with guided attention and lesion masks
stage1 stage2 stage3:
	$(PY) -m experiments.train $@ $(SOURCE)$(RUN_NAME)$(call more,ARGS)
evaluate: $(READY)  ## judge the latest run of each stage on test
report: $(READY)  ## a web page on them: runs/DATA/report/report.html
evaluate report:
	$(PY) -m experiments.$@ $(or $(STAGE),stage1 stage2 stage3) $(SOURCE)$(RUN_NAME)$(call more,ARGS)
fractures: $(READY)  ## train stage 3 by the recipe for real films (DATA, ROOT, SEEDS)
	$(PY) -m experiments.train --data-only experiments/fractures.yaml $(SOURCE)$(call more,ARGS)
	$(foreach seed,$(or $(SEEDS),0),$(RECIPE))
sweep: $(READY)  ## train stage 3 over lambda, without a server
curve: $(READY)  ## train the recipe over the number of masks
sweep: FILE = sweep_lambda
curve: FILE = sweep_masks
sweep curve:
	$(PY) -m experiments.sweep experiments/$(FILE).yaml $(SOURCE)$(RUN_NAME)$(call more,ARGS)
bench: $(READY)  ## time the code beside what people would use instead
	$(PY) -m experiments.bench $(SOURCE)$(call more,ARGS)
submit: $(READY)  ## send STAGE, or all three and their evaluation, to SLURM
	$(PY) -m experiments.submit$(if $(DRY), --dry-run)$(call more,STAGE)$(CLUSTER) $(SOURCE)$(RUN_NAME)$(call more,ARGS)
# Files of 7 bytes were killed before W&B wrote to them; WANDB_MODE=offline would keep sync at home.
sync: $(READY)  ## send the W&B runs that were kept offline, once they have ended
	find $(or $(ARGS),$(wildcard runs),.) -path '*/wandb/offline-run-*' -name '*.wandb' -size +7c \
	  -exec env -u WANDB_MODE $(PY) -m wandb sync$(if $(DRY), --dry-run) {} +
doctor: $(READY)  ## show what a run here would use, and what is wrong
	$(PY) -m experiments.doctor $(SOURCE)$(call more,ARGS)

.venv/.ready: pyproject.toml constraints.txt
	@for python in python3 python3.14 python3.13 python3.12 python3.11 python3.10 none; do \
	  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && break; \
	done; \
	if [ "$$python" = none ]; then \
	  echo "Python 3.10 or later is needed, none was found: install one, or name it: make PYTHON=/path/to/python" >&2; \
	  exit 2; \
	fi; \
	set -ex; "$$python" -m venv .venv
	.venv/bin/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@
