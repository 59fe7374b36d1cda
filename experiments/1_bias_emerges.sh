#!/usr/bin/env bash
# Finding 1: the bias emerges from training.
#
# At a random initialization the filters of a layer face the identity line or away from it as fair coins fall. LeNet is
# trained on MNIST and on Fashion-MNIST from five seeds, each with its own initialization and order of images; mass and
# mean projection of every layer are measured at initialization and after each epoch.
#
# The same for ResNet-18, whose 17 convolutions larger than 1x1 have 64 to 512 filters, and for VGG-11 (eight, of as many),
# on CIFAR-10; without a GPU (CUDA=1) VGG-11 in a small version.
source "$(dirname "$0")/common.sh"

compare() {
    "$PYTHON" experiments/compare.py bias --title "$1 on $2" --epoch "$EPOCHS" --output "$RESULTS/bias_$1_$2" \
        "trained on true labels" "$RUNS/results/$2/$1"
}

for_each_network project compare
