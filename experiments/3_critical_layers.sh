#!/usr/bin/env bash
# Finding 3: biased layers are the critical ones.
#
# Each layer of the networks of finding 1 is reset to its initial weights, to those of intermediate epochs, and to fresh
# random weights, while all other layers stay trained. The accuracy lost is compared with the bias of the layer: Spearman's
# rank correlation over the layers of each network, its mean over seeds with an interval, and the correlation of fair coins.
source "$(dirname "$0")/common.sh"

compare() {
    "$PYTHON" experiments/compare.py criticality --title "$1 on $2" --epoch "$EPOCHS" \
        --output "$RESULTS/criticality_$1_$2" "$RUNS/results/$2/$1"
}

for_each_network reset_layers compare
