# The recipes share this file: their parameters, and functions that call the three programs.
#
#     experiments/1_bias_emerges.sh --data-path DIR      folder of the datasets (default: ./datasets)
#     CUDA=1 experiments/1_bias_emerges.sh ...           on a GPU
#
# SEEDS="1 2", EPOCHS=3 and NETWORKS=lenet make a recipe shorter. PYTHON names the interpreter. Runs and results go to
# experiments/runs. After an interruption, give the same command again: finished parts are skipped.

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
EPOCHS=${EPOCHS:-10}
SEEDS=${SEEDS:-1 2 3 4 5}
NETWORKS=${NETWORKS:-lenet resnet18 vgg11}

RUNS=experiments/runs/${EPOCHS}_epochs # the small VGG-11 is trained for half as many
RESULTS=experiments/results
if [[ -z "${PYTHON:-}" ]]; then
    PYTHON=python
    [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi

# train OPTIONS: train a network, with a snapshot after every epoch unless OPTIONS say otherwise.
train() {
    "$PYTHON" train.py --data-path "$DATA" ${CUDA:+--cuda} --epochs "$EPOCHS" --snapshot-every 1 "$@" \
        --models-path $RUNS/models --tb-logdir $RUNS/tensorboard --resume-from latest
}

# project FOLDER OPTIONS: measure the normalized projections of all snapshots of a run, in FOLDER below $RUNS/models. The
# results of the last snapshot show that this is done. If it fails (a snapshot is damaged), they are removed: the same
# command fails again.
project() {
    local folder=$1 arch
    arch=$(basename "$(dirname "$folder")")
    [[ -e $RUNS/results/$folder/${arch}_$EPOCHS.json ]] ||
        "$PYTHON" compute_projections.py "${@:2}" --arch "$arch" ${CUDA:+--cuda} --normalize \
            --load-from "$RUNS/models/$folder" --results $RUNS/results || {
        rm -f "$RUNS/results/$folder/${arch}_$EPOCHS.json"
        return 1
    }
}

# reset_layers FOLDER OPTIONS: reset each layer of the final weights to several epochs and to fresh random weights.
reset_layers() {
    local folder=$1 arch epoch inits
    arch=$(basename "$(dirname "$folder")")
    inits=$RUNS/models/$folder/inits.txt
    compgen -G "$RUNS/results/$folder/reinit_${arch}_$EPOCHS.*json" > /dev/null && return
    {
        echo "$RUNS/models/$folder/${arch}_init_0.pt"
        for epoch in 1 2 3 5 $((EPOCHS / 2)) "$EPOCHS"; do
            ls "$RUNS/models/$folder/${arch}_$((epoch - 1)).tar" 2> /dev/null || true
        done
    } | sort -u > "$inits"
    "$PYTHON" reinit_layers.py "${@:2}" --arch "$arch" --data-path "$DATA" ${CUDA:+--cuda} --batch-size 500 --rand \
        --load-from "$RUNS/models/$folder/${arch}_$EPOCHS.pt" --inits-from "$inits" \
        --results $RUNS/results --plots $RUNS/plots
}

# for_each_network MEASURE COMPARE: train each network of NETWORKS from every seed, measure each run (MEASURE FOLDER
# OPTIONS), and compare the runs of a network (COMPARE ARCH FOLDER).
for_each_network() {
    local arch dataset seed folder images training asked=$EPOCHS
    local EPOCHS # of the current network; MEASURE and COMPARE use it
    for arch in $NETWORKS; do
        for dataset in $(datasets_of "$arch"); do
            EPOCHS=$asked folder=$dataset images=(--dataset "$dataset")
            case $arch in
                lenet) training=(--shuffle --lr 0.02) ;;
                # Fewer snapshots, because they are large.
                *) training=(--shuffle --augmentation --lr 0.01 --snapshot-every 5 --snapshot-all-until 3) ;;
            esac
            if [[ $arch == vgg11 && -z "${CUDA:-}" ]]; then # the small version for a CPU
                EPOCHS=$(((asked + 1) / 2)) folder=cifar10_4 images+=(--subsample-classes 4)
            fi
            for seed in $SEEDS; do
                train --arch "$arch" "${images[@]}" --seed "$seed" "${training[@]}"
                "$1" "$folder/$arch/$seed" "${images[@]}" --seed "$seed"
            done
            "$2" "$arch" "$folder"
        done
    done
}

datasets_of() {
    if [[ $1 == lenet ]]; then echo mnist fashion_mnist; else echo cifar10; fi
}

for seed in $SEEDS; do
    [[ "$seed" =~ ^(0|[1-9][0-9]*)$ ]] && continue
    echo "SEEDS: must be whole numbers, not $seed" >&2
    exit 2
done
if [[ ! "$EPOCHS" =~ ^[1-9][0-9]*$ ]]; then
    echo "EPOCHS: must be a whole number, 1 or more, not $EPOCHS" >&2
    exit 2
fi
if [[ -z "${SEEDS// /}" || -z "${NETWORKS// /}" ]]; then
    echo "SEEDS, NETWORKS: must not be empty" >&2
    exit 2
fi
for network in $NETWORKS; do
    [[ " lenet resnet18 vgg11 " == *" $network "* ]] && continue
    echo "NETWORKS: must be of lenet, resnet18 and vgg11, not $network" >&2
    exit 2
done
