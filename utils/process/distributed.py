"""One run in several processes, as torchrun starts them: which one this is, and what they tell one another.

In a process that torchrun has not started, or has started alone, there is no group and all of this does nothing.
"""

import contextlib
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, distributed

from core.errors import UsageError


def _by_torchrun() -> tuple[int, int, int]:
    """Rank, local rank and number of processes, as torchrun sets them; (0, 0, 1) without torchrun."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    texts = [os.environ.get(name, "") for name in names]
    if "" in (texts[0], texts[2]) or ("" in texts and texts[2] == "1"):
        return 0, 0, 1
    if not all(text.isdecimal() for text in texts) or int(texts[0]) >= int(texts[2]):
        told = ", ".join(f"{name}={text or '(not set)'}" for name, text in zip(names, texts, strict=True))
        print(f"error: not as torchrun sets them: {told}", file=sys.stderr)
        sys.exit(2)
    return int(texts[0]), int(texts[1]), int(texts[2])


#: Rank 0 of all processes writes files, and speaks for all. The local rank is the number of a process's GPU.
RANK, LOCAL_RANK, WORLD_SIZE = _by_torchrun()

COMING = 900.0  #: seconds for all processes to come: from a network disk their imports take minutes
PATIENCE = 1.0  #: seconds for rank 0 to fail as another rank has
_store = None  # torchrun's, in which every process can leave a word at any time


class GroupError(UsageError):
    """The processes cannot become a group; the message is one line."""


@contextlib.contextmanager
def group(device: torch.device):
    """Be one of the group while the block runs: tensors on GPUs go by NCCL, all else by gloo."""
    global _store
    if WORLD_SIZE == 1:
        yield
        return
    try:
        store, rank, size = next(distributed.rendezvous("env://"))
    except ValueError as error:
        raise GroupError(f"RANK and WORLD_SIZE are set, but not all that torchrun sets: {error}") from None
    _store = distributed.PrefixStore(_agree_on_a_name(store), store)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=_store, rank=rank, world_size=size)
    yield
    distributed.destroy_process_group()  # not when the block fails: it would wait for the others


def _agree_on_a_name(store) -> str:
    """A name for this start of the group, of rank 0's choice.

    The store outlives the processes: after a restart it still holds the addresses of those that were killed, and
    to connect to one of these is to wait for ever.

    Raises:
        GroupError: not all of them come.
    """
    mine = secrets.token_hex(8)
    if RANK > 0:
        store.set(f"asks/{RANK}", mine)
        name = store.get(f"answer/{mine}").decode()
        store.add(f"here/{name}", 1)
        return name
    deadline = time.monotonic() + COMING
    while (here := store.add(f"here/{mine}", 0)) < WORLD_SIZE - 1:
        if time.monotonic() > deadline:
            raise GroupError(
                f"torchrun: of {WORLD_SIZE} processes {WORLD_SIZE - 1 - here} did not come: see what they said"
            )
        for rank in range(1, WORLD_SIZE):  # perhaps one that was killed, until its successor asks
            if store.check([f"asks/{rank}"]):
                store.set(f"answer/{store.get(f'asks/{rank}').decode()}", mine)
        time.sleep(0.02)
    return mine


def sum_(tensor: Tensor) -> Tensor:
    """The tensor, which now holds the sum over all ranks."""
    if WORLD_SIZE > 1:
        distributed.all_reduce(tensor)
    return tensor


def average_(tensors: Iterable[Tensor]) -> None:
    """Let each tensor hold the mean over all ranks."""
    if WORLD_SIZE > 1:
        for tensor in tensors:
            tensor.copy_(sum_(tensor.double()) / WORLD_SIZE)


def from_main(function: Callable[[], Any]) -> Any:
    """What the function returns on rank 0, which alone calls it."""
    if WORLD_SIZE == 1:
        return function()
    result = [function() if RANK == 0 else None]
    distributed.broadcast_object_list(result)
    return result[0]


@contextlib.contextmanager
def one_a_machine_first():
    """One process of each machine goes through the block before the others: it downloads what is not there."""
    if LOCAL_RANK > 0:
        sum_(torch.zeros(1))
    yield
    if LOCAL_RANK == 0:
        sum_(torch.zeros(1))


def fail(status: int) -> tuple[bool, int]:
    """To be called by a rank that fails, or that has lost another one.

    Where all ranks fail for the same reason rank 0 says it; one that fails alone does.

    Returns:
        whether it is this rank that says why the run ends; and the exit status: that of the rank that does.
    """
    if _store is None:  # no group, or none yet: then every machine tells
        return LOCAL_RANK == 0, status
    try:
        deadline = time.monotonic() + (PATIENCE if RANK else 0)
        while time.monotonic() < deadline and not _store.check(["failed"]):
            time.sleep(0.02)
        rank, first_status = map(int, _store.compare_set("failed", "", f"{RANK} {status}").split())
        return rank == RANK, first_status
    except distributed.DistError:  # torchrun is gone, and its store with it
        return True, status


def connection_lost(error: Exception) -> str | None:
    """What an error says of the connection to other processes; None: it is about something else."""
    if WORLD_SIZE == 1 or not isinstance(error, RuntimeError):
        return None
    text = str(error)
    if "NCCL" in text:  # whose own words for it come last
        _, _, last = text.partition("Last error:")
        return "; ".join(part for part in (text.splitlines()[0], " ".join(last.split())) if part)
    if not isinstance(error, distributed.DistError) and "/gloo/" not in text:
        return None
    first_sentence = text.splitlines()[0].split(". ")[0]
    return re.sub(r"^\[[^]]*\] ", "", first_sentence)  # without the place in PyTorch's source
