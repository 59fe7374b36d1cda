"""Images of a folder: the batches of an ImageNet-style dataset, beside a loop that only decodes the same files.

    python benchmarks/folder.py                       generated JPEGs of ImageNet's usual size
    python benchmarks/folder.py --data-path DIR       the images of DIR/train

The rows take turns and have the same number of worker processes:

    ours       an epoch of augmented, normalized training batches, as train.py gets them
    plain      torchvision's ImageFolder, RandomResizedCrop, RandomHorizontalFlip, ToTensor and Normalize
    decoding   a DataLoader that decodes the same files to RGB and throws them away: the limit
"""

import functools

import common
import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

import data
from utils.arguments import Number


def main() -> None:
    parser = common.make_parser(__doc__, repetitions=4, network=False)
    add = parser.add_argument
    add("--data-path", metavar="DIR", help="folder with train/ and val/ (default: generated images)")
    add("--images", type=Number(int, 1), default=600, metavar="N", help="images to generate (default: 600)")
    add("--batch-size", type=Number(int, 1), default=32, metavar="N", help="default: 32")
    add("--workers", type=Number(int, 0), default=2, metavar="N", help="default: 2")
    args = parser.parse_args()
    device, layout = common.prepare_device(args)
    with common.dataset_folder("imagenet", args.data_path, args.images) as folder:
        images = data.Images("imagenet", folder, shuffle=True, augmentation=True)
        train = data.load(images, args.batch_size, device=device, workers=args.workers, memory_format=layout).train
        steps = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
        steps += [transforms.ToTensor(), transforms.Normalize(*images.normalization)]
        # The workers stay from one epoch to the next, like those of ours.
        workers = {"num_workers": args.workers, "persistent_workers": args.workers > 0}
        plain = ImageFolder(folder / "train", transforms.Compose(steps))
        decoding = ImageFolder(folder / "train", lambda image: torch.empty(0))
        loaders = {
            "ours": train,
            "plain": DataLoader(plain, args.batch_size, shuffle=True, pin_memory=args.cuda, **workers),
            "decoding": DataLoader(decoding, args.batch_size, **workers),
        }
        ways = {name: functools.partial(common.take_all, loader, device) for name, loader in loaders.items()}
        seconds = common.measure(ways, args.repetitions, device)

    print(f"{train.num_images:,} images, augmented, batch {args.batch_size}, {args.workers} workers")
    print(f"median [least to most] of {args.repetitions}")
    common.report(seconds, train.num_images)


if __name__ == "__main__":
    main()
