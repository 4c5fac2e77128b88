# make demo: from nothing to trained models and their pictures.   make lint: static checks.
# make quick: the quick tests, for every change.   make test: all of them.   make soak: 10,000 damaged inputs and 50 kills.
# make mutants: would the tests notice a wrong formula? Hours; FILES="training/loss.py" for some files.
# make gpu: tests, speed, training, analysis and memory on a GPU, in gpu/gpu.json; PART=2 for one part, DATA=AD_NC/train.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
DEMO := demo

# Without a GPU: 64x64, small networks. With one: the defaults at 256x256, in the same time.
SMALL := import torch; torch.cuda.is_available() or print("--resolution 64 --channel_max 32")
TRAIN = $(PY) train.py --dataset_dir $(DEMO)/AD_NC/train --loss relativistic --save_every 20 --eval_every 20 $(SIZE)
PREDICT = $(PY) predict.py --dataset_dir $(DEMO)/AD_NC/train --model_dir $(DEMO)/model --output_dir $(DEMO)/predictions \
	--subjects $(DEMO)/AD_NC/subjects.csv

.PHONY: demo demo-models quick test soak mutants gpu lint clean
demo: $(VENV)/installed
	$(PY) predict.py --model_dir models --draw grid,morph --output_dir $(DEMO)/first
	@echo "^ drawn by the bundled model. Now a data set of phantoms, and four models of it:"
	$(PY) phantom.py $(DEMO)/AD_NC --subjects 75 --seed 0
	$(MAKE) demo-models SIZE="$$($(PY) -c '$(SMALL)')"

demo-models:
	$(TRAIN) --classes all --conditional True --model_dir $(DEMO)/model --max_minutes 3.75
	$(TRAIN) --classes AD --model_dir $(DEMO)/model --max_minutes 0.5
	$(TRAIN) --classes NC --model_dir $(DEMO)/model --seed 1 --max_minutes 0.5
	$(TRAIN) --classes NC --model_dir $(DEMO)/control --seed 2 --max_minutes 0.5
	rm -rf $(DEMO)/predictions
	$(PREDICT) --classes all-conditional --export 200 --draw grid,morph --playground True
	$(PREDICT) --plot_umap True --AD_dir AD --NC_dir NC --control_dir $(DEMO)/control/NC --dataset_dir $(DEMO)/AD_NC/test --atlas True
	$(PY) -m analysis.areas $(DEMO)/AD_NC --generated $(DEMO)/predictions/all-conditional
	@echo "Look at, in this order:"
	@echo "  generated slices beside real ones:       $$(ls $(DEMO)/model/all-conditional/fake_vs_real/epoch_*.png | tail -n 1)"
	@echo "  what AD changes in the same slices:      $(DEMO)/predictions/all-conditional_morph.png"
	@echo "  the table above: is AD / NC of the generated slices what it is in truth?"
	@echo "  did training stay stable?                $(DEMO)/model/all-conditional/losses.png"
	@echo "  do an AD and an NC model lie further apart than two NC models? $(DEMO)/predictions/umap.png"
	@echo "  real slices in the conditional model's style space: $(DEMO)/predictions/umap_all-conditional.png"
	@echo "  the same maps with the slice behind every point, in a browser: $(DEMO)/predictions/atlas.html"
	@echo "  the conditional model itself, with sliders, in a browser:      $(DEMO)/predictions/playground.html"

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
	$(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m tools.gpu_check --dataset_dir $(DATA) --output_dir gpu --device $(DEVICE) \
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

$(VENV)/installed-dev: requirements-dev.txt requirements-volumes.txt $(VENV)/installed
	$(PY) -m pip install --disable-pip-version-check -r requirements-dev.txt
	touch $@
