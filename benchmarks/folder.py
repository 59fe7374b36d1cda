"""Images of a folder: the batches of an ImageNet-style dataset beside a loop that only decodes the same files.

    python benchmarks/folder.py                       generated JPEGs of ImageNet's usual size
    python benchmarks/folder.py --data-path DIR       those of DIR/train

Measured in one run, in turn, with the same number of worker processes:

    ours       an epoch of augmented, normalized training batches, as train.py gets them
    plain      torchvision's ImageFolder, RandomResizedCrop, RandomHorizontalFlip, ToTensor and Normalize
    decoding   a DataLoader that decodes the same files to RGB and hands nothing on: what cannot be beaten
"""

import argparse
import contextlib
import functools
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parent.parent))

import data
from benchmarks.common import header, measure, report, take_all
from utils.options import number
from utils.process import devices
from utils.process.ending import DONE, exit_status
from utils.training import precision


class Decoding(Dataset):
    def __init__(self, files):
        self.files = files

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        from PIL import Image

        with Image.open(self.files[index]) as image:
            image.convert("RGB")
        return 0


def decode_all(batches) -> None:
    for _ in batches:
        pass


@contextlib.contextmanager
def image_folder(data_path: str | None, count: int):
    """The folder given; without one, a temporary one with JPEGs of smooth random colours, 500x375 pixels."""
    if data_path is not None:
        yield Path(data_path)
        return
    from PIL import Image

    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for part, number in (("train", count), ("val", 2)):
            for index in range(number):
                file = Path(folder, part, f"class{index % 2}", f"{index}.jpg")
                file.parent.mkdir(parents=True, exist_ok=True)
                small = random.integers(256, size=(47, 63, 3), dtype=np.uint8)
                Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC).save(file, quality=90)
        yield Path(folder)


@exit_status
def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", help="folder with train/ and val/ (default: generated images)")
    parser.add_argument("--images", type=number(int, 1), default=600, metavar="N", help="to generate (600)")
    parser.add_argument("--batch-size", type=number(int, 1), default=32)
    parser.add_argument("--workers", type=number(int, 0), default=2)
    parser.add_argument("--repetitions", type=number(int, 1), default=4)
    parser.add_argument("--cuda", action="store_true")
    args = parser.parse_args(argv)
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    device = devices.choose(args.cuda)
    with image_folder(args.data_path, args.images) as folder:
        options = {"device": device, "shuffle": True, "augmentation": True, "workers": args.workers}
        options["memory_format"] = precision.memory_format(device)
        train = data.load("imagenet", folder, args.batch_size, **options).train
        # Its workers, like ours, stay from one epoch to the next.
        decoding = DataLoader(
            Decoding(train.preparation.files),
            args.batch_size,
            num_workers=args.workers,
            persistent_workers=args.workers > 0,
            generator=torch.Generator(),
        )
        steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
        steps += [transforms.ToTensor(), transforms.Normalize(*data.info("imagenet").normalization)]
        plain = DataLoader(
            ImageFolder(folder / "train", transforms.Compose(steps)),
            args.batch_size,
            shuffle=True,
            num_workers=args.workers,
            persistent_workers=args.workers > 0,
            pin_memory=args.cuda,
        )
        ways = {
            "ours": functools.partial(take_all, train, device),
            "plain": functools.partial(take_all, plain, device),
            "decoding": functools.partial(decode_all, decoding),
        }
        seconds = measure(ways, args.repetitions, device)

    print(header(device))
    print(f"{train.num_images:,} images, augmented, batch {args.batch_size}, {args.workers} workers")
    print(f"median [least to most] of {args.repetitions}")
    report(seconds, train.num_images)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
