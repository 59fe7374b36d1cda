# make demo     train LeNet on the images that are here, on the CPU; `make demo CUDA=1`: on a GPU
# make test     the tests
# make lint     ruff
#
# Each creates .venv where it is missing, and installs what is needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_OPTIONS := --arch lenet --dataset fashion_mnist_mini --seed 1 $(if $(CUDA),--cuda)

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(BIN)/python train.py $(DEMO_OPTIONS) --shuffle --augmentation --lr 0.02 --epochs 15 \
	    --snapshot-every 1 --models-path demo/models --tb-logdir demo/tensorboard --resume-from latest

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) demo

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
