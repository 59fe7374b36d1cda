"""Optimizers, the schedule of the learning rate, and the optimizer's state in snapshots."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.errors import UsageError
from utils.arguments import Settings
from utils.runs.record import GO_ON_WITH_WEIGHTS

#: Entries of a parameter group that are no hyperparameters, or follow from the schedule.
NOT_COMPARED = {"params", "lr", "initial_lr", "fused", "foreach", "capturable", "differentiable"}
#: What SGD and Adam can do, and do not do here.
UNUSED = {"dampening", "nesterov", "amsgrad", "maximize", "decoupled_weight_decay"}


def make_optimizer(net: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Return an SGD or Adam optimizer of all parameters. Raise UsageError if none of them is trainable."""
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise UsageError("--arch: the network has no parameters to train")
    # Fused: one pass over the memory, and no temporary copies of gradients (see docs/speed.md).
    options: dict[str, Any] = {"lr": settings.lr, "weight_decay": settings.weight_decay, "fused": True}
    if settings.optimizer == "adam":
        return torch.optim.Adam(net.parameters(), **options)
    return torch.optim.SGD(net.parameters(), momentum=settings.momentum, **options)


def make_schedule(optimizer: torch.optim.Optimizer, settings: Settings, epoch: int):
    """Return the schedule of the learning rate as it is at the start of an epoch; None without a schedule.

    The optimizer has the learning rate of epoch 0, and gets that of `epoch`, which counts from 0.
    """
    if settings.lr_step is None or settings.lr_decay is None:
        return None
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, settings.lr_step, settings.lr_decay)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns about a schedule that steps before its optimizer
        for _ in range(epoch):
            schedule.step()
    return schedule


def restore(optimizer: torch.optim.Optimizer, path: Path, snapshot: dict[str, Any], override: bool) -> None:
    """Load the optimizer's buffers from a training state. Hyperparameters and learning rate stay this run's.

    `override` accepts a state with other hyperparameters. Raise UsageError if the optimizer cannot go on with it.
    """
    problem = "holds no state of this optimizer for this network: it cannot go on"
    try:
        state = snapshot["optimizer_state_dict"]
        (theirs,), (ours,) = state["param_groups"], optimizer.state_dict()["param_groups"]
        own = "amsgrad" if "betas" in ours else "nesterov"  # RAdam has no amsgrad, NAdam more entries than Adam
        if own not in theirs or theirs.keys() - ours.keys() - NOT_COMPARED or any(map(theirs.get, UNUSED)):
            kind = "AdamW" if theirs.get("decoupled_weight_decay") else "an optimizer"
            problem = f"holds a state of {kind} that train.py does not have"
            raise ValueError
        compared = (ours.keys() & theirs.keys()) - NOT_COMPARED
        if not override and any(theirs[name] != ours[name] for name in compared):
            raise ValueError("another optimizer")
        groups = [{**ours, "params": theirs["params"]}]
        optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
        _restore_buffers(optimizer, may_be_empty=override)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        raise UsageError(f"{path} {problem}; {GO_ON_WITH_WEIGHTS}") from None


def portable_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the optimizer's state for a snapshot: on the CPU, and without `fused`, which older PyTorch lacks."""
    state = optimizer.state_dict()
    for index, buffers in state["state"].items():
        state["state"][index] = {name: value if value is None else value.cpu() for name, value in buffers.items()}
    for group in state["param_groups"]:
        group["fused"] = None
    return state


def buffers_of(optimizer: torch.optim.Optimizer) -> list[str]:
    """Return the names of the buffers that the optimizer keeps of each parameter, as large as the parameter."""
    (group,) = optimizer.param_groups
    return ["exp_avg", "exp_avg_sq"] if "betas" in group else ["momentum_buffer"] if group["momentum"] else []


def _restore_buffers(optimizer: torch.optim.Optimizer, may_be_empty: bool) -> None:
    """Check the buffers that were loaded, and give them the memory layout of their parameters.

    A fused step needs that layout, which depends on the device. A parameter that was frozen or unused has no
    buffers. Adam then starts with zeros. SGD gets zeros here, since its fused step takes buffers for all or none.
    """
    names, found = buffers_of(optimizer), False
    for parameter in optimizer.param_groups[0]["params"]:
        state = optimizer.state.get(parameter, {})
        if all(value is None for value in state.values()):
            if names == ["momentum_buffer"] and parameter.requires_grad:
                optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
            continue
        for name in names:
            if state[name].shape != parameter.shape:
                raise ValueError(f"{name} has another shape")
            state[name] = torch.empty_like(parameter).copy_(state[name])
            found = True
    if names and not found and not may_be_empty:
        raise ValueError("no parameter has buffers")
