"""Optimizers and the schedule of the learning rate; their state in snapshots, and continuing with it."""

import argparse
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.errors import UsageError


def make_optimizer(net: nn.Module, args: argparse.Namespace) -> torch.optim.Optimizer:
    """SGD or Adam over all parameters, by the options of train.py.

    Raises:
        UsageError: none of them is to be trained.
    """
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise UsageError(f"--arch {args.arch} has no parameters to train")
    # Fused: one pass over the memory, and no temporary copies of gradients (see benchmarks/NOTES.md).
    options: dict[str, Any] = {"lr": args.lr, "weight_decay": args.weight_decay, "fused": True}
    if args.optimizer == "adam":
        return torch.optim.Adam(net.parameters(), **options)
    return torch.optim.SGD(net.parameters(), momentum=args.momentum, **options)


def make_schedule(optimizer: torch.optim.Optimizer, args: argparse.Namespace, epoch: int):
    """The decay of the learning rate, as if it had held since epoch 0.

    Args:
        optimizer: with the learning rate of epoch 0; it gets that of the epoch.
        args: with `lr_step` in epochs, or None, and `lr_decay`.
        epoch: that training begins with, counted from 0.

    Returns:
        a StepLR that is stepped once an epoch; None where the learning rate stays.
    """
    if args.lr_step is None:
        return None
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, args.lr_step, args.lr_decay)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the schedule goes ahead of the optimizer: it has to
        for _ in range(epoch):
            schedule.step()
    return schedule


def restore(optimizer, schedule, path: Path, snapshot: dict[str, Any], override: bool) -> None:
    """Continue with a snapshot's optimizer state, but with this run's implementation of the optimizer.

    With override the hyperparameters and the schedule's position stay this run's.

    Args:
        optimizer, schedule: of this run, as `make_optimizer` and `make_schedule` give them.
        path: of the snapshot.
        snapshot: as utils.snapshots.load gives it.
        override: as said.

    Raises:
        UsageError: it holds no state of such an optimizer for this network.
    """
    ours = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    kept = ours if override else [{key: group[key] for key in ("fused", "foreach")} for group in ours]
    try:
        state = snapshot["optimizer_state_dict"]
        for group, mine in zip(state["param_groups"], ours, strict=True):
            _check_values(group, mine)
        groups = [{**group, **mine} for group, mine in zip(state["param_groups"], kept, strict=True)]
        optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
        if schedule is not None and not override:
            _check_values(snapshot["scheduler_state_dict"], schedule.state_dict())
            schedule.load_state_dict(snapshot["scheduler_state_dict"])
        if not override:
            _check_state(optimizer)
        # In the layout of the parameters, which a fused step asks for: it is another one on another device.
        for parameter, buffers in optimizer.state.items():
            for name, buffer in buffers.items():
                if torch.is_tensor(buffer) and buffer.dim() and buffer.shape == parameter.shape:
                    buffers[name] = torch.empty_like(parameter, dtype=buffer.dtype).copy_(buffer)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError):
        raise UsageError(f"{path} holds no state of this optimizer for this network: it cannot go on") from None


def portable_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state for a snapshot, without the implementation, which other versions may not have."""
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["fused"] = None
    return state


def _check_values(recorded: dict[str, Any], ours: dict[str, Any]) -> None:
    """Raise ValueError where recorded values are not of the kinds of ours, as far as we have them."""

    def kind(value):
        if isinstance(value, (list, tuple)):
            return [kind(item) for item in value]
        return "a number" if type(value) in (int, float) and abs(value) < float("inf") else type(value)

    for name, value in recorded.items():
        if name in ours and name not in ("fused", "foreach") and kind(value) != kind(ours[name]):
            raise ValueError(f"{name} is {value!r}")


def _check_state(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError where the optimizer's state is not one that steps have left behind.

    A parameter that is frozen or not used has none. Should it be used from now on, SGD goes on from a momentum of
    0, which is what it begins with.
    """
    if not any(optimizer.state.values()) and any(group.get("momentum", 1) for group in optimizer.param_groups):
        raise ValueError("there is no state")
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if not state:
                if parameter.requires_grad and group.get("momentum", 0):
                    optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
                continue
            if any(value is not None and not torch.is_tensor(value) for value in state.values()):
                raise ValueError("something in the state is no tensor")
            if "betas" in group and not {"step", "exp_avg", "exp_avg_sq"} <= state.keys():
                raise ValueError("a moment is missing")
            buffers = [value for value in state.values() if torch.is_tensor(value) and value.dim()]
            keeps_buffers = "betas" in group or group["momentum"] != 0
            if any(buffer.shape != parameter.shape for buffer in buffers) or (keeps_buffers and not buffers):
                raise ValueError("a parameter has no buffer, or one of another shape")
