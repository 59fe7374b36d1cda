#!/usr/bin/env bash
# Finding 4: published networks are biased too.
#
# This recipe measures the ImageNet weights that torchvision publishes for its 68 ConvNets. It downloads them to TORCH_HOME
# (14 GB for all) unless they are there already. ARCHS="resnet18 vgg11" measures fewer networks. No images are needed.
source "$(dirname "$0")/common.sh"
RUNS=experiments/runs/model_zoo

ARCHS=${ARCHS:-$("$PYTHON" -c '
import models
for arch in [*models.names(), *models.other_names()]:
    try:
        models.check(arch, pretrained=True)
    except models.ModelError:
        continue
    print(arch)')}
if [[ -z "${ARCHS// /}" ]]; then
    echo "ARCHS: it is empty; name at least one network" >&2
    exit 2
fi
for arch in $ARCHS; do
    [[ -e $RUNS/results/imagenet/$arch/pretrained_$arch.json ]] ||
        "$PYTHON" compute_projections.py --arch "$arch" --dataset imagenet --pretrained --normalize ${CUDA:+--cuda} \
            --results $RUNS/results --plots $RUNS/plots
done
results=()
for arch in $ARCHS; do
    results+=("$RUNS/results/imagenet/$arch/pretrained_$arch.json")
done
"$PYTHON" experiments/compare.py networks --title "Networks of torchvision's model zoo" --output $RESULTS/model_zoo \
    "${results[@]}"
