#!/usr/bin/env bash
# Finding 2: the bias correlates with learning.
#
# The same network is trained on the same images with less and less to learn: true labels; 20, 60 and 100 % of the
# training labels corrupted; the pixels of each training image shuffled. With this protocol a corrupted label is never the
# true one: at 100 % every image has the label of one of the nine classes that it does not belong to, and that could be
# learned too. A second table counts the silent filters, which look biased, and gives the bias of the other filters.
source "$(dirname "$0")/common.sh"

settings_of lenet
for dataset in $folders; do
    groups=(
        "true labels" $dataset/lenet
        "20 % corrupted" $dataset/noise_20/lenet
        "60 % corrupted" $dataset/noise_60/lenet
        "100 % corrupted" $dataset/noise_100/lenet
        "shuffled pixels" $dataset/pixel_shuffle/lenet
    )
    for seed in ${SEEDS:-$(seeds_of lenet)}; do
        for noise in 0 0.2 0.6 1 -1; do
            case $noise in
                0) folder=$dataset/lenet ;;
                -1) folder=$dataset/pixel_shuffle/lenet ;;
                1) folder=$dataset/noise_100/lenet ;;
                *) folder=$dataset/noise_${noise#0.}0/lenet ;;
            esac
            [[ $noise == 0 ]] && noisy=() || noisy=(--noise "$noise" --noise-seed "$seed")
            train --arch lenet --dataset $dataset --seed "$seed" "${training[@]}" "${noisy[@]}"
            project $folder/"$seed" --dataset $dataset --seed "$seed"
        done
    done
    "$PYTHON" experiments/compare.py bias --title "lenet on $dataset" --epoch "$EPOCHS" \
        --output $RESULTS/learning_lenet_$dataset \
        --note "A corrupted label is never the true one: at 100 % every image is labelled as one of the classes that it
does not belong to, which could itself be learned. Filters that have fallen silent are counted in
silent_lenet_$dataset.md." \
        "${groups[@]/#$dataset\//$RUNS/results/$dataset/}"
    "$PYTHON" experiments/silent_filters.py --title "lenet on $dataset" --epoch "$EPOCHS" --data-path "$DATA" \
        --output $RESULTS/silent_lenet_$dataset "${groups[@]/#$dataset\//$RUNS/models/$dataset/}"
done
