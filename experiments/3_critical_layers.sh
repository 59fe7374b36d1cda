#!/usr/bin/env bash
# Finding 3: biased layers are the critical ones.
#
# Each layer of the networks of finding 1 is put back to its initial weights, to those of intermediate epochs, and to fresh
# random ones, all others staying trained. The accuracy lost is compared with the bias of the layer: Spearman's rank
# correlation over the layers of each network, its mean over seeds, and a bootstrap interval for that.
source "$(dirname "$0")/common.sh"

reset_all() { # ARCH DATASET OPTIONS OF TRAINING
    local arch=$1 dataset=$2 seed
    for seed in $SEEDS; do
        train --arch "$arch" --dataset "$dataset" --seed "$seed" --shuffle "${@:3}"
        reset_layers "$dataset/$arch/$seed" --dataset "$dataset" --seed "$seed"
    done
    "$PYTHON" experiments/compare.py criticality --title "$arch on $dataset" --epoch "$EPOCHS" \
        --output "$RESULTS/criticality_${arch}_$dataset" $RUNS/results/"$dataset/$arch"
}

reset_all lenet mnist --lr 0.02
reset_all lenet fashion_mnist --lr 0.02
if [[ -n "${CUDA:-}" ]]; then
    reset_all vgg11 cifar10 --augmentation --lr 0.01
fi
