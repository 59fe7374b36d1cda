"""Every test runs in a folder of its own, on one thread: the tests run side by side."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in the programs that tests start

import pytest
import torch


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="there is no GPU"))
