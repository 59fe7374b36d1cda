"""One run in several processes, as torchrun starts them: the rank of this process, and communication among ranks.

Without torchrun, or with a single process, there is no process group and the functions here change nothing.
"""

import contextlib
import os
import secrets
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed

from core.errors import UsageError
from utils.process import signals

RENDEZVOUS_TIMEOUT_S = 900.0  #: until all processes have started; imports from a network disk can take minutes
FAILURE_GRACE_S = 1.0  #: how long other ranks let rank 0 report an error first


def _read_environment() -> tuple[int, int, int]:
    """Return rank, local rank and number of processes from torchrun's variables; (0, 0, 1) without torchrun."""
    variables = {name: os.environ.get(name, "") for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    rank, local_rank, size = variables.values()
    if not rank or size in ("", "1"):
        return 0, 0, 1
    try:
        return int(rank), int(local_rank), int(size)
    except ValueError:
        print(f"error: variables not as torchrun sets them: {variables}", file=sys.stderr)
        sys.exit(2)


#: Rank 0 writes the files and prints for all ranks. The local rank is the number of the process's GPU.
RANK, LOCAL_RANK, WORLD_SIZE = _read_environment()

_store = None  # the group's key-value store, kept by torchrun or by rank 0


@contextlib.contextmanager
def group(device: torch.device):
    """Join the process group for the block: NCCL for tensors on GPUs, gloo for everything else.

    Raise UsageError if processes did not start, some alone have no GPU, or torchrun's variables are incomplete.
    """
    global _store
    if WORLD_SIZE == 1:
        yield
        return
    try:
        store, _, _ = next(distributed.rendezvous("env://"))
    except ValueError as error:
        raise UsageError(f"RANK and WORLD_SIZE are set, but not all of torchrun's variables: {error}") from None
    _store = distributed.PrefixStore(_agree_on_group_name(store), store)
    _store.set(f"device/{RANK}", device.type)
    on_cpu = [rank for rank in range(WORLD_SIZE) if _store.get(f"device/{rank}") == b"cpu"]
    if 0 < len(on_cpu) < WORLD_SIZE:
        raise UsageError(f"--cuda: rank {on_cpu[0]} has no GPU and others have: use machines that all have GPUs")
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=_store, rank=RANK, world_size=WORLD_SIZE)
    yield
    distributed.destroy_process_group()  # not after an error: it would wait for the other ranks


def _agree_on_group_name(store) -> str:
    """Return a name that rank 0 draws for this start of the group, and all ranks share.

    torchrun's store survives a restart and still holds the addresses of killed processes; connecting to one of
    these waits forever. A new name as prefix hides them. (torchrun's restart count cannot be the name: each of its
    agents counts for itself.)
    """
    token = secrets.token_hex(8)
    if RANK > 0:
        store.set(f"asks/{RANK}", token)
        name = store.get(f"answer/{token}").decode()
        store.add(f"here/{name}", 1)
        return name
    deadline = time.monotonic() + RENDEZVOUS_TIMEOUT_S
    while (here := store.add(f"here/{token}", 0)) < WORLD_SIZE - 1:
        if time.monotonic() > deadline:
            missing = WORLD_SIZE - 1 - here
            raise UsageError(f"torchrun: {missing} of {WORLD_SIZE} processes did not start: see their output")
        for rank in range(1, WORLD_SIZE):  # the question may be a killed process's, until its successor asks
            if store.check([f"asks/{rank}"]):
                store.set(f"answer/{store.get(f'asks/{rank}').decode()}", token)
        time.sleep(0.02)
    return token


def sum_(tensor: Tensor) -> Tensor:
    """Replace a tensor by its sum over all ranks, in place, and return it."""
    if WORLD_SIZE > 1:
        distributed.all_reduce(tensor)
    return tensor


def stop_requested() -> bool:
    """Return on all ranks whether SIGUSR1 has reached one of them."""
    return sum_(torch.tensor(int(signals.stop_requested))).item() > 0


def from_rank_0(function: Callable[[], Any]) -> Any:
    """Call the function on rank 0 only and return its result on all ranks."""
    if WORLD_SIZE == 1:
        return function()
    result = [function() if RANK == 0 else None]
    distributed.broadcast_object_list(result)
    return result[0]


@contextlib.contextmanager
def local_rank_0_first():
    """Let one process of each machine run the block before the others, so that only one downloads files."""
    if LOCAL_RANK > 0:
        sum_(torch.zeros(1))  # a barrier
    yield
    if LOCAL_RANK == 0:
        sum_(torch.zeros(1))


def announce_failure(status: int) -> tuple[bool, int]:
    """Tell the other ranks that this one fails. Return whether it prints the reason, and the run's exit status.

    One rank prints: rank 0 if it fails within FAILURE_GRACE_S, otherwise the first rank that failed.
    """
    if _store is None:  # there is no group yet: one process of each machine prints
        return LOCAL_RANK == 0, status
    try:
        deadline = time.monotonic() + (FAILURE_GRACE_S if RANK else 0)
        while time.monotonic() < deadline and not _store.check(["failed"]):
            time.sleep(0.02)
        rank, first_status = map(int, _store.compare_set("failed", "", f"{RANK} {status}").split())
        return rank == RANK, first_status
    except distributed.DistError:  # torchrun has ended, and its store with it
        return True, status
