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
    DATA=$(realpath "$2")
elif [[ $# -ne 0 ]]; then
    echo "usage: [CUDA=1] $0 [--data-path DIR]" >&2
    exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
EPOCHS=${EPOCHS:-10}
SEEDS=${SEEDS:-1 2 3 4 5}
NETWORKS=${NETWORKS:-lenet resnet18 vgg11}

# LeNet on MNIST and Fashion-MNIST, the others on colour images.
LENET_DATASETS= COLOUR_NETWORKS=
for network in $NETWORKS; do
    case $network in
        lenet) LENET_DATASETS="mnist fashion_mnist" ;;
        resnet18 | vgg11) COLOUR_NETWORKS+=" $network" ;;
        *)
            echo "NETWORKS: lenet, resnet18, vgg11; not $network" >&2
            exit 2
            ;;
    esac
done

# in_colour ARCH: how ResNet-18 and VGG-11 are trained on CIFAR-10 (EPOCHS, FOLDER, IMAGES, TRAINING). The small version of
# VGG-11 for a CPU takes the first four classes, and half as many epochs. Snapshots are large: there are fewer of them.
ALL_EPOCHS=$EPOCHS
in_colour() {
    EPOCHS=$ALL_EPOCHS FOLDER=cifar10 IMAGES=(--dataset cifar10)
    if [[ $1 == vgg11 && -z "${CUDA:-}" ]]; then
        EPOCHS=$(((ALL_EPOCHS + 1) / 2)) FOLDER=cifar10_4 IMAGES+=(--subsample-classes 4)
    fi
    TRAINING=(--shuffle --augmentation --lr 0.01 --snapshot-every 5 --snapshot-all-until 3)
}
RUNS=experiments/runs/${EPOCHS}_epochs
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

# project FOLDER OPTIONS: the normalized projections of all snapshots of a run, FOLDER below $RUNS/models.
project() {
    local folder=$1 arch
    arch=$(basename "$(dirname "$folder")")
    [[ -e $RUNS/results/$folder/${arch}_$EPOCHS.json ]] ||
        "$PYTHON" compute_projections.py "${@:2}" --arch "$arch" ${CUDA:+--cuda} --normalize \
            --load-from "$RUNS/models/$folder" --results $RUNS/results
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
