#!/usr/bin/env bash
# Finding 1: the bias emerges from training.
#
# At a random initialization the filters of a layer face the identity line or away from it as fair coins fall. LeNet is
# trained on MNIST and on Fashion-MNIST from five seeds, each with its own initialization and order of images; mass and
# mean projection of every layer are measured at initialization and after each epoch.
#
# On a GPU (CUDA=1) the same for VGG-11 on CIFAR-10, whose eight layers have 64 to 512 filters.
source "$(dirname "$0")/common.sh"

for dataset in mnist fashion_mnist; do
    for seed in $SEEDS; do
        train --arch lenet --dataset $dataset --seed "$seed" --shuffle --lr 0.02
        project $dataset/lenet/"$seed" --dataset $dataset --seed "$seed"
    done
    "$PYTHON" experiments/compare.py bias --title "lenet on $dataset" --epoch "$EPOCHS" --output $RESULTS/bias_lenet_$dataset \
        "trained on true labels" $RUNS/results/$dataset/lenet
done

if [[ -n "${CUDA:-}" ]]; then
    for seed in $SEEDS; do
        train --arch vgg11 --dataset cifar10 --seed "$seed" --shuffle --augmentation --lr 0.01
        project cifar10/vgg11/"$seed" --dataset cifar10 --seed "$seed"
    done
    "$PYTHON" experiments/compare.py bias --title "vgg11 on cifar10" --epoch "$EPOCHS" --output $RESULTS/bias_vgg11_cifar10 \
        "trained on true labels" $RUNS/results/cifar10/vgg11
fi
