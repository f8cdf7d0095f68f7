"""Says where the GPU kernels written in Triton can run, and sends tensors to GPUs.

The modules of the kernels are imported only where they can run.
"""

import importlib
import importlib.util
import os
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor


def kernels_for(
    name: Literal["triton_growing", "triton_masks", "triton_sampler"], device: torch.device | str
) -> ModuleType | None:
    """The module ``ficklenet.<name>`` if its kernels can run on a device, else None: then plain torch is used.

    Triton comes with torch's CUDA builds. Its kernels run on GPUs, or under Triton's interpreter
    (``TRITON_INTERPRET=1``, for tests) on a CPU.
    """
    runs_on = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
    if torch.device(device).type != runs_on or importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module(f"ficklenet.{name}")


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device.

    A GPU copies a tensor of the CPU after the work that it was given before. The caller does not wait for this work, so
    the GPU is not idle while the caller prepares the next kernels.
    """
    is_sent = torch.device(device).type == "cuda" and not tensor.is_cuda
    return (tensor.pin_memory() if is_sent else tensor).to(device, non_blocking=True)
