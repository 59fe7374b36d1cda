#!/usr/bin/env bash
# Finding 3: biased layers are the critical ones.
#
# Each layer of the networks of finding 1 is put back to its initial weights, to those of intermediate epochs, and to fresh
# random ones, all others staying trained. The accuracy lost is compared with the bias of the layer: Spearman's rank
# correlation over the layers of each network, its mean over seeds, and a bootstrap interval for that.
source "$(dirname "$0")/common.sh"

for dataset in $LENET_DATASETS; do
    for seed in $SEEDS; do
        train --arch lenet --dataset $dataset --seed "$seed" --shuffle --lr 0.02
        reset_layers $dataset/lenet/"$seed" --dataset $dataset --seed "$seed"
    done
    "$PYTHON" experiments/compare.py criticality --title "lenet on $dataset" --epoch "$EPOCHS" \
        --output $RESULTS/criticality_lenet_$dataset $RUNS/results/$dataset/lenet
done

among vgg11 $NETWORKS || exit 0
EPOCHS=$VGG_EPOCHS
for seed in $SEEDS; do
    train --arch vgg11 "${VGG_IMAGES[@]}" --seed "$seed" "${VGG_TRAINING[@]}"
    reset_layers $VGG_FOLDER/vgg11/"$seed" "${VGG_IMAGES[@]}" --seed "$seed"
done
"$PYTHON" experiments/compare.py criticality --title "vgg11 on $VGG_FOLDER" --epoch "$EPOCHS" \
    --output $RESULTS/criticality_vgg11_$VGG_FOLDER $RUNS/results/$VGG_FOLDER/vgg11
