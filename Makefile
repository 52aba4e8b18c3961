# autovla-rt. `make` shows the targets.
VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= python3
CLI := $(BIN)/autovla-rt

TARGET ?= cpu
PRECISION ?= int8
ENGINE ?= engines/$(basename $(notdir $(patsubst %/,%,$(CHECKPOINT))))

# The demo checkpoint: a miniature AutoVLA in the official layout, trained in its own world.
DEMO ?= demo/checkpoint
DEMO_NOTE := miniature AutoVLA, trained on drawn scenes (demo/): never for a real car

# kernels is also a PyPI name: keep the working directory off the import path.
export PYTHONSAFEPATH := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-engine demo-model demo-model-sft engine test test-gpu lint kernels bench bench-export clean

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(VENV)/base.stamp  ## Create .venv with the runtime and what export needs (no torch)

demo: demo-engine  ## Build the demo engine, plan the demo scene, drive through the demo world
	mkdir -p build/demo
	$(CLI) plan --frames calib_data/demo --engine engines/demo --threads 1 --plot build/demo/plan.png
	$(CLI) drive --engine engines/demo --threads 1 --seed 8 --out build/demo

ifeq ($(CHECKPOINT),)
engine: demo-engine  ## Build the demo engine, or CHECKPOINT= CONFIG= [TARGET= PRECISION= ENGINE= BUILD_OPTIONS=]
else
engine: $(VENV)/base.stamp
	$(if $(CONFIG),,$(error CHECKPOINT needs CONFIG=, the YAML that it was trained with))
	$(CLI) build --checkpoint "$(CHECKPOINT)" --config "$(CONFIG)" --target $(TARGET) --precision $(PRECISION) --out "$(ENGINE)" $(BUILD_OPTIONS)
endif

demo-engine: $(VENV)/base.stamp
	$(CLI) build --checkpoint $(DEMO)/base --config $(DEMO)/config.yaml --recipe demo/recipe.toml --target $(TARGET) --precision $(PRECISION) --frame-size 392x224 --note "$(DEMO_NOTE)" --out engines/demo

demo-model-sft: $(VENV)/dev.stamp  ## Train the supervised half of it in build/demo-model-sft (70 minutes on 2 cores)
	$(BIN)/python -m autovla_rt.demo.train build/demo-model-sft

demo-model: demo-model-sft  ## Train the demo checkpoint anew in build/demo-model (25 minutes more)
	$(BIN)/python -m autovla_rt.demo.reinforce build/demo-model --from build/demo-model-sft

test: $(VENV)/dev.stamp  ## Run the tests
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore tests/demo
	# In processes of their own: torch's training crashes where OpenVINO computed before.
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder tests/demo

lint: $(VENV)/dev.stamp  ## Check style, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

kernels: $(VENV)/dev.stamp  ## Compile the GPU kernels in build/cubins (no GPU needed)
	$(BIN)/python -m autovla_rt.kernels.aot build/cubins

test-gpu: $(VENV)/gpu.stamp  ## On an NVIDIA device: run the GPU's tests [ENGINE=engines/mine], write build/gpu-report.json
	$(if $(findstring command line,$(origin ENGINE)),$(CLI) compile --engine "$(ENGINE)")
	$(BIN)/python bench/gpu_report.py build/gpu-report.json $(if $(findstring command line,$(origin ENGINE)),--engine "$(ENGINE)")

bench: $(VENV)/dev.stamp .venv-bench/stamp .venv-genai/stamp  ## Race the peers at the real 3B geometry (45 GB of disk, an hour)
	PYTHONPATH=bench $(BIN)/python bench/race.py build/race build/race/report

bench-export: $(VENV)/dev.stamp  ## Measure export at the real 3B geometry (40 GB of disk)
	PYTHONPATH=bench $(BIN)/python bench/export_3b.py --plans 0

clean:  ## Remove what was built, not .venv
	rm -rf build dist engines/demo .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/base.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[export,demo,plot]'
	touch $@

$(VENV)/gpu.stamp: $(VENV)/base.stamp
	$(BIN)/pip install --quiet -c constraints.txt cuda-bindings pytest
	touch $@

.venv-bench/stamp: bench/peers/requirements.txt bench/peers/requirements-alone.txt
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet -r bench/peers/requirements.txt
	.venv-bench/bin/pip install --quiet --no-deps -r bench/peers/requirements-alone.txt
	touch $@

.venv-genai/stamp: bench/peers/requirements-genai.txt
	test -x .venv-genai/bin/python || $(PYTHON) -m venv .venv-genai
	.venv-genai/bin/pip install --quiet -r bench/peers/requirements-genai.txt
	touch $@

.venv-modelopt/stamp: tests/parity/requirements-modelopt.txt
	test -x .venv-modelopt/bin/python || $(PYTHON) -m venv .venv-modelopt
	.venv-modelopt/bin/pip install --quiet -r tests/parity/requirements-modelopt.txt
	touch $@

.venv-edgellm/stamp: tests/parity/requirements-edgellm.txt
	test -x .venv-edgellm/bin/python || $(PYTHON) -m venv .venv-edgellm
	.venv-edgellm/bin/pip install --quiet -r tests/parity/requirements-edgellm.txt
	# It is built for another torch than the CPU's, and cannot be imported beside that.
	.venv-edgellm/bin/pip uninstall --quiet --yes torchvision
	touch $@

$(VENV)/dev.stamp: $(VENV)/base.stamp
	$(BIN)/pip install --quiet -c constraints.txt -e '.[export,demo,plot,dev]'
	touch $@
