# make demo     from nothing to the paper's picture: train LeNet on the images that are here, measure its snapshots,
#               reset its layers; on the CPU, or with `make demo CUDA=1` on a GPU
# make test     the tests; with CUDA=1 those of a GPU too
# make torture  all tests, with the long versions of the attacks on the programs, and what was attacked how often
# make bench    what the speed claims rest on, as far as a CPU can measure it in five minutes; with CUDA=1: on a GPU
# make lint     ruff
#
# Each creates .venv where it is missing, and installs what is needed; `make clean` removes it, and what the demo made.

ifeq ($(CUDA),0)
override CUDA :=
endif

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := --arch lenet --dataset fashion_mnist_mini --seed 1 $(if $(CUDA),--cuda)
DEMO_RUN := demo/models/fashion_mnist_mini/lenet/1
DEMO_FIGURES := demo/plots/fashion_mnist_mini/lenet/1

.PHONY: demo test torture bench lint clean

demo: $(VENV)/.installed
	$(BIN)/python train.py $(DEMO) --shuffle --augmentation --lr 0.02 --epochs 15 --snapshot-every 1 \
	    --models-path demo/models --tb-logdir demo/tensorboard --resume-from latest
	$(BIN)/python compute_projections.py $(DEMO) --normalize --load-from $(DEMO_RUN) \
	    --init-from $(DEMO_RUN)/lenet_init_0.pt --results demo/results --plots demo/plots
	ls $(DEMO_RUN)/lenet_init_0.pt $(DEMO_RUN)/lenet_[0249].tar > demo/inits.txt
	$(BIN)/python reinit_layers.py $(DEMO) --rand --load-from $(DEMO_RUN)/lenet_15.pt --inits-from demo/inits.txt \
	    --results demo/results --plots demo/plots
	@echo
	@echo "The bias of each layer emerging from training:    $(DEMO_FIGURES)/mass_lenet.png"
	@echo "Accuracy lost when a layer is put back:           $(DEMO_FIGURES)/reinit_lenet_15.png"
	@echo "Are the biased layers the critical ones?          $(DEMO_FIGURES)/criticality_lenet_15.png"

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
	rm -rf $(VENV) demo

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
