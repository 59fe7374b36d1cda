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

for arch in $COLOUR_NETWORKS; do
    in_colour "$arch"
    for seed in $SEEDS; do
        train --arch "$arch" "${IMAGES[@]}" --seed "$seed" "${TRAINING[@]}"
        reset_layers $FOLDER/"$arch"/"$seed" "${IMAGES[@]}" --seed "$seed"
    done
    "$PYTHON" experiments/compare.py criticality --title "$arch on $FOLDER" --epoch "$EPOCHS" \
        --output $RESULTS/criticality_"$arch"_$FOLDER $RUNS/results/$FOLDER/"$arch"
done
