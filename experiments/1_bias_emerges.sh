#!/usr/bin/env bash
# Finding 1: the bias emerges from training.
#
# At a random initialization the filters of a layer face the identity line or away from it as fair coins fall. LeNet is
# trained on MNIST and on Fashion-MNIST from five seeds, each with its own initialization and order of images; mass and
# mean projection of every layer are measured at initialization and after each epoch.
#
# The same for VGG-11, whose eight layers have 64 to 512 filters: on CIFAR-10 on a GPU (CUDA=1), else its small version.
source "$(dirname "$0")/common.sh"

for dataset in $LENET_DATASETS; do
    for seed in $SEEDS; do
        train --arch lenet --dataset $dataset --seed "$seed" --shuffle --lr 0.02
        project $dataset/lenet/"$seed" --dataset $dataset --seed "$seed"
    done
    "$PYTHON" experiments/compare.py bias --title "lenet on $dataset" --epoch "$EPOCHS" --output $RESULTS/bias_lenet_$dataset \
        "trained on true labels" $RUNS/results/$dataset/lenet
done

among vgg11 $NETWORKS || exit 0
EPOCHS=$VGG_EPOCHS
for seed in $SEEDS; do
    train --arch vgg11 "${VGG_IMAGES[@]}" --seed "$seed" "${VGG_TRAINING[@]}"
    project $VGG_FOLDER/vgg11/"$seed" "${VGG_IMAGES[@]}" --seed "$seed"
done
"$PYTHON" experiments/compare.py bias --title "vgg11 on $VGG_FOLDER" --epoch "$EPOCHS" \
    --output $RESULTS/bias_vgg11_$VGG_FOLDER "trained on true labels" $RUNS/results/$VGG_FOLDER/vgg11
