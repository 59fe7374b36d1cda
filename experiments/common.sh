# The recipes share this file: their parameters, and functions that call the three programs.
#
#     experiments/1_bias_emerges.sh --data-path DIR      folder of the datasets (default: ./datasets)
#     CUDA=1 experiments/1_bias_emerges.sh ...           on a GPU
#
# SEEDS="1 2", EPOCHS=3 and NETWORKS=lenet make a recipe shorter. PYTHON names the interpreter. Runs and results go to
# experiments/runs, in a folder for each number of epochs. After an interruption, give the same command again: finished
# parts are skipped.

set -euo pipefail

DATA=./datasets
if [[ "${1:-}" == --data-path && $# -eq 2 ]]; then
    if [[ -z "$2" ]] || ! mkdir -p "$2"; then # the programs download missing images to it
        echo "--data-path: '$2' is not a folder and cannot be created" >&2
        exit 2
    fi
    DATA=$(realpath "$2")
elif [[ $# -ne 0 ]]; then
    echo "usage: [CUDA=1] $0 [--data-path DIR]" >&2
    exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ "${CUDA:-}" == 0 ]] && CUDA=
NETWORKS=${NETWORKS:-lenet resnet18 vgg11}
RESULTS=experiments/results
if [[ -z "${PYTHON:-}" ]]; then
    PYTHON=python
    [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi

# settings_of NETWORK: set how it is trained: `folders`, one for each dataset (cifar10_4: its first four classes),
# `training`, and `measuring`, the options of the other two programs; EPOCHS and RUNS.
settings_of() {
    local on_cifar=(--shuffle --augmentation --lr 0.01) epochs=10
    folders=cifar10 training=("${on_cifar[@]}" --snapshot-every 5 --snapshot-all-until 3) measuring=()
    case $1 in
        lenet) folders="mnist fashion_mnist" training=(--shuffle --lr 0.02 --snapshot-every 1) ;;
        fcn3)
            epochs=100 folders="mnist fashion_mnist" measuring=(--with-linear)
            training=(--shuffle --lr 0.01 --snapshot-every 50 --snapshot-all-until 5)
            ;;
        vgg11_quarter | vgg11_eighth)
            epochs=40 folders="cifar10_2 cifar10_4"
            training=("${on_cifar[@]}" --snapshot-every 20 --snapshot-all-until 3)
            ;;
        vgg11) [[ -n "${CUDA:-}" ]] || epochs=5 folders=cifar10_4 ;; # the small version for a CPU
        resnet18) ;;
    esac
    train_for $epochs
}

# train_for N: set EPOCHS, which the user's EPOCHS replaces, and the folder of runs of so many epochs.
train_for() {
    EPOCHS=${ASKED_EPOCHS:-$1}
    RUNS=experiments/runs/${EPOCHS}_epochs
}

# images_of FOLDER: set `images`, the options that name the dataset and the classes of a folder.
images_of() {
    images=(--dataset "${1%_[0-9]*}")
    [[ $1 != *_[0-9]* ]] || images+=(--subsample-classes "${1##*_}")
}

# train OPTIONS: train a network for EPOCHS.
train() {
    "$PYTHON" train.py --data-path "$DATA" ${CUDA:+--cuda} --epochs "$EPOCHS" "$@" \
        --models-path "$RUNS/models" --tb-logdir "$RUNS/tensorboard" --resume-from latest
}

# project FOLDER OPTIONS: measure the normalized projections of all snapshots of a run, in FOLDER below $RUNS/models. The
# results of the last snapshot show that this is done. If it fails (a snapshot is damaged), they are removed: the same
# command fails again.
project() {
    local folder=$1 arch
    arch=$(basename "$(dirname "$folder")")
    [[ -e $RUNS/results/$folder/${arch}_$EPOCHS.json ]] ||
        "$PYTHON" compute_projections.py "${@:2}" --arch "$arch" ${CUDA:+--cuda} --normalize \
            --load-from "$RUNS/models/$folder" --results "$RUNS/results" || {
        rm -f "$RUNS/results/$folder/${arch}_$EPOCHS.json"
        return 1
    }
}

# reset_layers FOLDER OPTIONS: reset each layer of the final weights to several epochs and to fresh random weights, and
# put it back along the identity line alone.
reset_layers() {
    local folder=$1 arch epoch inits
    arch=$(basename "$(dirname "$folder")")
    inits=$RUNS/models/$folder/inits.txt
    compgen -G "$RUNS/resets/$folder/reinit_${arch}_$EPOCHS.*json" > /dev/null && return
    {
        echo "$RUNS/models/$folder/${arch}_init_0.pt"
        for epoch in 1 2 3 5 $((EPOCHS / 2)) "$EPOCHS"; do
            ls "$RUNS/models/$folder/${arch}_$((epoch - 1)).tar" 2> /dev/null || true
        done
    } | sort -u > "$inits"
    "$PYTHON" reinit_layers.py "${@:2}" --arch "$arch" --data-path "$DATA" ${CUDA:+--cuda} --batch-size 500 \
        --rand --identity-line --load-from "$RUNS/models/$folder/${arch}_$EPOCHS.pt" --inits-from "$inits" \
        --results "$RUNS/resets" --plots "$RUNS/plots"
}

# for_each_network MEASURE COMPARE: train each network of NETWORKS from every seed, measure each run (MEASURE FOLDER
# OPTIONS), and compare the runs of a network (COMPARE ARCH FOLDER).
for_each_network() {
    local arch folder seed
    for arch in $NETWORKS; do
        settings_of "$arch"
        for folder in $folders; do
            images_of "$folder"
            for seed in ${SEEDS:-$(seeds_of "$arch")}; do
                train --arch "$arch" "${images[@]}" --seed "$seed" "${training[@]}"
                "$1" "$folder/$arch/$seed" "${images[@]}" --seed "$seed" "${measuring[@]}"
            done
            "$2" "$arch" "$folder"
        done
    done
}

# seeds_of NETWORK: print the seeds of a network, where SEEDS does not say them. Recipe 3 has others.
seeds_of() { echo 1 2 3 4 5; }

for seed in ${SEEDS-}; do
    [[ "$seed" =~ ^(0|[1-9][0-9]*)$ ]] && continue
    echo "SEEDS: must be whole numbers, not $seed" >&2
    exit 2
done
ASKED_EPOCHS=${EPOCHS:-}
if [[ -n "$ASKED_EPOCHS" && ! "$ASKED_EPOCHS" =~ ^[1-9][0-9]*$ ]]; then
    echo "EPOCHS: must be a whole number, 1 or more, not $ASKED_EPOCHS" >&2
    exit 2
fi
if [[ -n "${SEEDS+given}" && -z "${SEEDS// /}" || -z "${NETWORKS// /}" ]]; then
    echo "SEEDS, NETWORKS: must not be empty" >&2
    exit 2
fi
KNOWN=${KNOWN:-lenet resnet18 vgg11 vgg11_quarter vgg11_eighth fcn3}
for network in $NETWORKS; do
    [[ " $KNOWN " == *" $network "* ]] && continue
    echo "NETWORKS: must be of ${KNOWN// /, }, not $network" >&2
    exit 2
done
