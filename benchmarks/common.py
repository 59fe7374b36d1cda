"""What the benchmarks share: where the numbers come from, medians with their spread, the plain way to images."""

import os
import platform
import statistics
from collections.abc import Sequence

import torch
import torchvision
from torch.utils.data import DataLoader

import data
from data.loading import normalization
from utils import devices


def header(device: torch.device) -> str:
    """The machine and the versions, in one line."""
    processor = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            processor = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return (
        f"{processor}, {os.cpu_count()} cores; {devices.describe(device)}; Python {platform.python_version()}, "
        f"PyTorch {torch.__version__}, torchvision {torchvision.__version__}"
    )


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """The median, and the smallest and the largest value in brackets."""
    return f"{statistics.median(values):{form}} [{min(values):{form}} to {max(values):{form}}]"


class PlainDataset(torch.utils.data.Dataset):
    """Images in memory, made a PIL image and transformed one by one, as torchvision's dataset classes do."""

    def __init__(self, images, labels, transform):
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        from PIL import Image

        pixels = self.images[index].permute(1, 2, 0).numpy()
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        return self.transform(image), int(self.labels[index])


def plain_loader(
    name: str, loader, batch_size: int, augmentation: bool = False, workers: int = 1, *, shuffle: bool
) -> DataLoader:
    """The plain PyTorch way to the images of a loader of ours."""
    from torchvision import transforms

    spec = data.info(name)
    steps = [transforms.ToTensor(), transforms.Normalize(*normalization(spec, False, False))]
    if augmentation:
        steps.insert(0, transforms.RandomCrop(spec.image_size, padding=4))
        if spec.flip:
            steps.insert(1, transforms.RandomHorizontalFlip())
    dataset = PlainDataset(loader.images.cpu(), loader.labels.cpu(), transforms.Compose(steps))
    pinned = torch.cuda.is_available()
    return DataLoader(dataset, batch_size, shuffle=shuffle, num_workers=workers, pin_memory=pinned)
