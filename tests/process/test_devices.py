"""The device that a program computes on."""

import pytest
import torch

from core.errors import UsageError
from utils.process import devices


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
    ],
)
def test_gpu_that_cannot_be_used_is_one_line(error, monkeypatch):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(torch, "zeros", fail)
    with pytest.raises(UsageError, match=r"^--cuda: .*\Z"):
        devices.take(torch.device("cuda"))
    devices.take(torch.device("cpu"))
