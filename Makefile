# `make` lists what there is to make. Each target creates .venv where it is missing, and installs what it needs.

ifeq ($(CUDA),0)
override CUDA :=
endif

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := --arch lenet --dataset fashion_mnist_mini --seed 1 $(if $(CUDA),--cuda)
DEMO_RUN := demo/models/fashion_mnist_mini/lenet/1
DEMO_FIGURES := demo/plots/fashion_mnist_mini/lenet/1

.DEFAULT_GOAL := help
.PHONY: help demo docs test torture bench lint clean

help:
	@echo "make demo      train LeNet on images that are here, measure its filters, reset its layers: a minute"
	@echo "make docs      write the tables in docs/options.md, and the output and figures of README.md and docs/results.md"
	@echo "make test      the tests: five minutes on two cores"
	@echo "make torture   all tests, with the long versions of the attacks on the programs: a quarter of an hour and more"
	@echo "make bench     the benchmarks behind docs/speed.md: five minutes, longer on a GPU"
	@echo "make lint      check the style"
	@echo "make clean     remove .venv, caches, and what the demo made"
	@echo
	@echo "demo, test and bench use a GPU with CUDA=1 in front: CUDA=1 make demo"

demo: $(VENV)/.installed
	$(BIN)/python train.py $(DEMO) --shuffle --augmentation --lr 0.02 --epochs 15 --snapshot-every 1 \
	    --models-path demo/models --tb-logdir demo/tensorboard --log demo/train.log --resume-from latest
	$(BIN)/python compute_projections.py $(DEMO) --normalize --load-from $(DEMO_RUN) \
	    --init-from $(DEMO_RUN)/lenet_init_0.pt --results demo/results --plots demo/plots --log demo/projections.log
	ls $(DEMO_RUN)/lenet_init_0.pt $(DEMO_RUN)/lenet_[0249].tar > demo/inits.txt
	$(BIN)/python reinit_layers.py $(DEMO) --rand --load-from $(DEMO_RUN)/lenet_15.pt --inits-from demo/inits.txt \
	    --results demo/results --plots demo/plots --log demo/reinit.log
	@echo
	@echo "The share of filters that face away from the identity line leaves the grey band of chance in several layers while"
	@echo "LeNet learns: $(DEMO_FIGURES)/mass_lenet.png"
	@echo "Each layer, put back to an earlier epoch while the others stay trained, loses this much of the accuracy:"
	@echo "$(DEMO_FIGURES)/reinit_lenet_15.png"
	@echo "Whether the biased layers are those that lose most cannot be told from the few layers of one network; a point is"
	@echo "a layer: $(DEMO_FIGURES)/criticality_lenet_15.png"

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/pages.py

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest
	$(if $(CUDA),$(BIN)/python -m pytest -m cuda)

torture: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --torture

bench: $(VENV)/.installed
ifdef CUDA
	$(BIN)/python benchmarks/training.py --arch vgg11 --dataset cifar10 --images 12800 --cuda
	$(BIN)/python benchmarks/training.py --arch vgg11 --dataset cifar10 --images 12800 --cuda --tf32
	$(BIN)/python benchmarks/training.py --arch resnet18 --dataset cifar10 --images 12800 --cuda --compile
	$(BIN)/python benchmarks/training.py --images 25600 --cuda --compile
	$(BIN)/python benchmarks/training.py --parts process --cuda
	$(BIN)/python benchmarks/training.py --dataset cifar10 --parts batches --cuda
	$(BIN)/python benchmarks/reinit.py --arch vgg19 --dataset cifar10 --images 2000 --every 17 --cuda
	$(BIN)/python benchmarks/reinit.py --arch vgg19 --dataset cifar10 --images 2000 --every 17 --cuda --tf32
	$(BIN)/python benchmarks/choices.py --cuda --compile
	$(BIN)/python benchmarks/choices.py --arch vgg11 --dataset cifar10 --cuda
	$(BIN)/python benchmarks/choices.py --arch vgg11 --dataset cifar10 --cuda --trials 0
	$(BIN)/python benchmarks/choices.py --arch resnet18 --dataset cifar10 --cuda
	$(BIN)/python benchmarks/choices.py --arch resnet18 --dataset cifar10 --cuda --trials 0
	$(BIN)/python benchmarks/projections.py --snapshots 2 --names 12 --repetitions 2 --cuda
else
	$(BIN)/python benchmarks/training.py --images 6400 --parts training process
	$(BIN)/python benchmarks/training.py --arch vgg11 --dataset cifar10 --images 384
	$(BIN)/python benchmarks/training.py --arch resnet18 --dataset cifar10 --images 512
	$(BIN)/python benchmarks/training.py --dataset cifar10 --images 5000 --parts batches
	$(BIN)/python benchmarks/folder.py
	$(BIN)/python benchmarks/reinit.py --images 1000
	$(BIN)/python benchmarks/projections.py --snapshots 2 --names 12 --repetitions 2
endif

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) demo .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
