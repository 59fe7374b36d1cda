#!/usr/bin/env bash
# Finding 3: biased layers are the critical ones.
#
# Each layer of trained networks is reset to its initial weights, to those of intermediate epochs, and to fresh random
# weights, while all other layers stay trained. The accuracy lost is compared with the bias of the layer, over the hidden
# layers of each network, and with its rivals, depth and distance moved; then over seeds. Networks and seeds were settled
# before the runs were made, but for the last two networks, which joined later:
#
# - LeNet on MNIST and Fashion-MNIST
# - VGG-11 with a quarter and with an eighth of the channels, on two and on four classes of CIFAR-10
# - the fully connected network of Zhang et al. on MNIST and Fashion-MNIST, as a check of the method: in their paper the
#   first layer is critical and the others are not
# - ResNet-18 and VGG-11 of recipe 1
: "${NETWORKS:=lenet vgg11_eighth vgg11_quarter fcn3 resnet18 vgg11}"
source "$(dirname "$0")/common.sh"

seeds_of() {
    case $1 in
        lenet) seq 11 30 ;;
        fcn3) seq 11 15 ;;
        resnet18 | vgg11) seq 1 5 ;; # the runs of recipe 1
        *) seq 11 20 ;;
    esac
}

overview=()
compare() {
    overview+=("$1 on $2" "$RUNS/resets/$2/$1")
    "$PYTHON" experiments/compare.py criticality --title "$1 on $2" --epoch "$EPOCHS" \
        --output "$RESULTS/criticality_$1_$2" "$RUNS/resets/$2/$1"
}

for_each_network reset_layers compare
"$PYTHON" experiments/compare.py overview --title "Critical layers" --output "$RESULTS/criticality_overview" "${overview[@]}"
