# What the recipes share: their parameters, and the three programs with those filled in.
#
#     experiments/1_bias_emerges.sh --data-path DIR      where the datasets are (./datasets)
#     CUDA=1 experiments/1_bias_emerges.sh ...           on a GPU
#
# SEEDS="1 2", EPOCHS=3 and NETWORKS=lenet make it shorter, PYTHON names the interpreter. Everything goes to
# experiments/runs, and what is there already is not done again: give the same command after an interruption.

set -euo pipefail

DATA=./datasets
if [[ "${1:-}" == --data-path && $# -eq 2 ]]; then
    if [[ -z "$2" ]] || ! mkdir -p "$2"; then # where it is missing the programs download the images
        echo "--data-path: '$2' is no folder" >&2
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

RUNS=experiments/runs/${EPOCHS}_epochs # asked for: of the small VGG-11 they are half as many
RESULTS=experiments/results
if [[ -z "${PYTHON:-}" ]]; then
    PYTHON=python
    [[ -x .venv/bin/python ]] && PYTHON=.venv/bin/python
fi

# train OPTIONS: a run with a snapshot after every epoch, if OPTIONS do not say otherwise.
train() {
    "$PYTHON" train.py --data-path "$DATA" ${CUDA:+--cuda} --epochs "$EPOCHS" --snapshot-every 1 "$@" \
        --models-path $RUNS/models --tb-logdir $RUNS/tensorboard --resume-from latest
}

# project FOLDER OPTIONS: the normalized projections of all snapshots of a run, FOLDER below $RUNS/models. Where one is
# damaged those of the last, by which it is known to be done, are removed: the same command says so again.
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

# reset_layers FOLDER OPTIONS: each layer of the final weights put back to several epochs and to fresh weights.
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

# for_each_network MEASURE COMPARE: train the networks of NETWORKS from every seed, and measure each of these runs
# (MEASURE FOLDER OPTIONS) and what the runs of a network have in common (COMPARE ARCH FOLDER).
for_each_network() {
    local arch dataset seed folder images training asked=$EPOCHS
    local EPOCHS # of the network at hand, which what is called here sees too
    for arch in $NETWORKS; do
        for dataset in $(datasets_of "$arch"); do
            EPOCHS=$asked folder=$dataset images=(--dataset "$dataset")
            case $arch in
                lenet) training=(--shuffle --lr 0.02) ;;
                # Their snapshots are large: there are fewer of them.
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
    echo "SEEDS: whole numbers; not $seed" >&2
    exit 2
done
if [[ ! "$EPOCHS" =~ ^[1-9][0-9]*$ ]]; then
    echo "EPOCHS: a number from 1 on; not $EPOCHS" >&2
    exit 2
fi
if [[ -z "${SEEDS// /}" || -z "${NETWORKS// /}" ]]; then
    echo "SEEDS, NETWORKS: at least one" >&2
    exit 2
fi
for network in $NETWORKS; do
    [[ " lenet resnet18 vgg11 " == *" $network "* ]] && continue
    echo "NETWORKS: lenet, resnet18, vgg11; not $network" >&2
    exit 2
done
