#!/usr/bin/env bash
# Finding 3 in regimes that take a GPU:
#
# - VGG-11 at full width on all of CIFAR-10, for 60 epochs
# - mlp_bn on CIFAR-10 as the authors trained it, for 300 epochs; its fully connected layers are measured
#
# NETWORKS=vgg11 leaves out the second one, and SEEDS="11 12" makes it shorter.
CUDA=1 KNOWN="vgg11 mlp_bn"
: "${NETWORKS:=$KNOWN}"
source "$(dirname "$0")/common.sh"

settings_of() {
    local epochs=60
    folders=cifar10 training=(--shuffle --augmentation --lr 0.01 --snapshot-all-until 3)
    case $1 in
        vgg11) training+=(--lr-step 20 --lr-decay 0.2 --tf32) measuring=(--tf32) ;;
        mlp_bn)
            epochs=300 measuring=(--with-linear)
            training+=(--lr-step 100 --lr-decay 0.1 --weight-decay 5e-4)
            ;;
    esac
    train_for $epochs
}

seeds_of() { seq 11 15; }

compare() {
    "$PYTHON" experiments/compare.py criticality --title "$1 on $2" --epoch "$EPOCHS" \
        --output "$RESULTS/criticality_$1_$2_${EPOCHS}_epochs" "$RUNS/resets/$2/$1"
}

for_each_network reset_layers compare
