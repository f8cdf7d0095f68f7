"""Says where the GPU kernels written in Triton can run. Their modules are imported only there."""

import importlib
import importlib.util
import os
from types import ModuleType
from typing import Literal

import torch


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
