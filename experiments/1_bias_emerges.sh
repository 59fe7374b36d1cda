#!/usr/bin/env bash
# Finding 1: the bias emerges from training.
#
# At a random initialization the signs of a layer's projections are fair coins. LeNet is trained on MNIST and on
# Fashion-MNIST from five seeds, each with its own initialization and order of images. Mass and mean projection of every
# layer are measured at initialization and after each epoch.
#
# The same is done on CIFAR-10 for ResNet-18 (17 convolutions larger than 1x1, with 64 to 512 filters) and for VGG-11 (eight
# convolutions, 64 to 512 filters). Without CUDA=1, VGG-11 is trained on four classes only, for half as many epochs.
source "$(dirname "$0")/common.sh"

compare() {
    "$PYTHON" experiments/compare.py bias --title "$1 on $2" --epoch "$EPOCHS" --output "$RESULTS/bias_$1_$2" \
        "trained on true labels" "$RUNS/results/$2/$1"
}

for_each_network project compare
