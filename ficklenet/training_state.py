"""The state of a training as bytes, from which it can continue: weights, optimiser and progress."""

import io
from typing import Any

import torch
from torch import nn

from ficklenet.torch_file import load_whole


def pack_training(model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]) -> bytes:
    """The state of a training.

    Args:
        progress: plain values, such as the next step.
    """
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "progress": progress}, buffer)
    return buffer.getvalue()


def unpack_training(data: bytes, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restores the state of model and optimiser, on any device, and returns the progress.

    Raises:
        ValueError: the bytes have changed since they were written; the message is only the reason.
    """
    state = load_whole(data)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["progress"]


def is_finite(model: nn.Module) -> bool:
    """Whether every weight is finite; after a step with an infinite gradient some weights are not."""
    return bool(torch.stack([weight.isfinite().all() for weight in model.parameters()]).all())
