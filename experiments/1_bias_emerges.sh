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

for dataset in $LENET_DATASETS; do
    for seed in $SEEDS; do
        train --arch lenet --dataset $dataset --seed "$seed" --shuffle --lr 0.02
        project $dataset/lenet/"$seed" --dataset $dataset --seed "$seed"
    done
    "$PYTHON" experiments/compare.py bias --title "lenet on $dataset" --epoch "$EPOCHS" --output $RESULTS/bias_lenet_$dataset \
        "trained on true labels" $RUNS/results/$dataset/lenet
done

for arch in $COLOUR_NETWORKS; do
    in_colour "$arch"
    for seed in $SEEDS; do
        train --arch "$arch" "${IMAGES[@]}" --seed "$seed" "${TRAINING[@]}"
        project $FOLDER/"$arch"/"$seed" "${IMAGES[@]}" --seed "$seed"
    done
    "$PYTHON" experiments/compare.py bias --title "$arch on $FOLDER" --epoch "$EPOCHS" \
        --output $RESULTS/bias_"$arch"_$FOLDER "trained on true labels" $RUNS/results/$FOLDER/"$arch"
done
