"""The CRF of a training step, for a batch at map size: one function with two implementations.

``exact`` is ``ficklenet.mean_field`` on the batch's device, on GPUs with a kernel in float16. ``lattice`` is pydensecrf
on the CPU, one image at a time. They solve the same problem, but the lattice approximates the kernel (docs/method.md
shows the effect on the losses).
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ficklenet.arguments import require_tensor
from ficklenet.crf import AT_MAP_SIZE, CrfParameters, refine
from ficklenet.mean_field import refine_exactly

CrfMethod = Literal["auto", "exact", "lattice"]
Map = Callable[..., Iterable[Any]]


@torch.no_grad()
def refine_batch(
    probabilities_BLHW: Tensor,
    images_BCHW: Tensor,
    parameters: CrfParameters = AT_MAP_SIZE,
    *,
    method: CrfMethod = "auto",
    map_images: Map = map,
) -> Tensor:
    """The CRF's marginals for a batch: float32 (B, L, H, W) on its device, without a gradient.

    Args:
        probabilities_BLHW: the probabilities of the labels, which sum to 1.
        images_BCHW: uint8 RGB (B, 3, H, W) on the same grid.
        parameters: by default those for map size.
        method: auto: lattice on the CPU, exact elsewhere.
        map_images: runs the images of the lattice, like ``map``. Give an executor's ``map`` to run them in processes;
            threads would not help, because pydensecrf does not release the interpreter lock.

    Raises:
        ValueError: the images are not uint8 on the grid of the probabilities, or lattice is used, but pydensecrf is not
            installed.
    """
    require_tensor(probabilities_BLHW, "floats", ("B", "L", "H", "W"), "refine_batch", "probabilities_BLHW")
    batch, _, *grid = probabilities_BLHW.shape
    require_tensor(images_BCHW, "uint8", (batch, 3, *grid), "refine_batch", "images_BCHW", ", RGB")
    if method == "auto":
        method = "lattice" if probabilities_BLHW.device.type == "cpu" else "exact"
    if method == "exact":
        kernel_type = torch.float16 if probabilities_BLHW.device.type == "cuda" else torch.float32
        return refine_exactly(probabilities_BLHW.float(), images_BCHW, parameters, kernel_type=kernel_type)
    images = np.ascontiguousarray(images_BCHW.permute(0, 2, 3, 1).cpu().numpy())
    marginals = map_images(refine, probabilities_BLHW.float().cpu().numpy(), images, [parameters] * len(images))
    return torch.from_numpy(np.stack(list(marginals))).to(probabilities_BLHW.device)
