# make demo: from nothing to trained models and their pictures.   make lint: static checks.
# make quick: the tests of a minute, for every change.   make test: all of them.   make soak: 10,000 damaged inputs and 50 kills.
# make mutants: would the tests notice a wrong formula? Hours; FILES="training/loss.py" for some files.
# make gpu: tests, speed, training, analysis and memory on a GPU, in gpu/gpu.json; PART=2 for one part, DATA=AD_NC/train.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
DEMO := demo

# Without a GPU: 64x64, a thin network, a few minutes a model. With one: the defaults at 256x256.
SMALL := --resolution 64 --loss relativistic --save_every 1 --max_minutes 2.75
FULL := --save_every 5 --max_minutes 2

.PHONY: demo quick test soak mutants gpu lint clean
demo: $(VENV)/installed
	$(PY) phantom.py $(DEMO)/AD_NC --subjects 100 --seed 0
	@set -e; flags="$(SMALL)"; \
	if $(PY) -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then flags="$(FULL)"; fi; \
	for run in "AD" "NC" "all --conditional True"; do \
		echo "train.py --classes $$run $$flags"; \
		$(PY) train.py --dataset_dir $(DEMO)/AD_NC/train --model_dir $(DEMO)/model --classes $$run $$flags; \
	done
	$(PY) predict.py --dataset_dir $(DEMO)/AD_NC/train --model_dir $(DEMO)/model --output_dir $(DEMO)/predictions \
		--plot_umap True --AD_dir AD --NC_dir NC --umap_slices 15
	@echo "Pictures:"; ls -1 $(DEMO)/model/*/*.png $(DEMO)/predictions/*.png; \
	for run in $(DEMO)/model/*; do ls -1 $$run/fake_vs_real/*.png | tail -n 1; done

quick: $(VENV)/installed-dev
	$(PY) -m pytest -n auto --dist worksteal -m "not slow" tests

test: $(VENV)/installed-dev
	$(PY) -m pytest -n auto --dist worksteal tests

SEED := 0
soak: $(VENV)/installed-dev
	SOAK=$(SEED) $(PY) -m pytest -n auto --dist worksteal tests/test_fuzz.py tests/test_faults.py

mutants: $(VENV)/installed-dev
	$(PY) tests/mutants.py $(FILES)

DATA := AD_NC/train
DEVICE := cuda
gpu:  # offline, too: without a .venv, with the packages of $(PYTHON)
	$(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m training.gpu_check --dataset_dir $(DATA) --output_dir gpu --device $(DEVICE) \
		$(if $(PART),--part $(PART))

lint: $(VENV)/installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

clean:
	rm -rf $(DEMO)

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(PY) -m pip install --disable-pip-version-check -r requirements-dev.txt
	touch $@
