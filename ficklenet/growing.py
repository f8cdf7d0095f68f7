"""Seeded region growing (Huang et al., CVPR 2018, section 3.3): seeds spread into confident neighbours.

It works for a whole batch, on the device of its arguments. The labels of seeds spread between 8-connected pixels with
the same label until nothing changes. On a GPU, ``ficklenet.triton_growing`` does this without waiting for the device.

Label maps: 0 background, class number + 1; every other value (255 in the stores) is unknown.

Shape legend: B images, L labels (background and classes), H W feature grid, N 9 neighbours, the pixel itself included.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ficklenet.arguments import require_tensor
from ficklenet.gpu_kernels import kernels_for
from ficklenet.segmentation_losses import is_known

FOREGROUND_CONFIDENCE = 0.85
BACKGROUND_CONFIDENCE = 0.99
STEPS_BETWEEN_LOOKS = 8  # checking for changes waits for the device


@torch.no_grad()
def grow_seeds(
    seeds_BHW: Tensor,
    probabilities_BLHW: Tensor,
    present_BL: Tensor,
    *,
    foreground_confidence: float = FOREGROUND_CONFIDENCE,
    background_confidence: float = BACKGROUND_CONFIDENCE,
) -> Tensor:
    """Grown seeds (B, H, W): the seeds, and all pixels that are connected to a seed of the same label.

    Here a pixel's label is the most probable of the image's labels if its probability is high enough, else its seed.
    The seeds themselves do not change. Pixels that are not seeds and are not reached remain unknown.

    Args:
        seeds_BHW: integer label maps; every training step starts from the original seeds.
        probabilities_BLHW: probabilities that were refined by the CRF; no gradient flows into them.
        present_BL: bool, whether the image has the label; True for the background.
        foreground_confidence, background_confidence: a probability must be above this to count.

    Raises:
        ValueError: a tensor has another type or shape than these.
    """
    require_tensor(probabilities_BLHW, "floats", ("B", "L", "H", "W"), "grow_seeds", "probabilities_BLHW")
    batch, num_labels, *grid = probabilities_BLHW.shape
    require_tensor(seeds_BHW, "integers", (batch, *grid), "grow_seeds", "seeds_BHW")
    require_tensor(present_BL, "booleans", (batch, num_labels), "grow_seeds", "present_BL")
    likely_BHW, label_BHW = probabilities_BLHW.masked_fill(~present_BL[:, :, None, None], -1.0).max(1)
    needed_BHW = torch.where(label_BHW == 0, background_confidence, foreground_confidence)
    labels_BHW = torch.where(likely_BHW > needed_BHW, label_BHW.to(seeds_BHW.dtype), seeds_BHW)
    is_seed_BHW = is_known(seeds_BHW, probabilities_BLHW.shape[1])
    kernels = kernels_for("triton_growing", labels_BHW.device)
    spread = kernels.connected if kernels is not None else connected
    reached_BHW = spread(labels_BHW, is_seed_BHW & (labels_BHW == seeds_BHW))
    return torch.where(reached_BHW & ~is_seed_BHW, labels_BHW, seeds_BHW)


def connected(labels_BHW: Tensor, sources_BHW: Tensor) -> Tensor:
    """The pixels that are connected to a source through pixels of the same label, bool (B, H, W)."""
    neighbours_BNHW = _neighbours(labels_BHW.float() + 1)  # outside the edge is 0, which is not a label
    is_open_BNHW = (neighbours_BNHW == labels_BHW.float()[:, None] + 1).float()
    reached_B1HW = sources_BHW[:, None].float()
    while True:
        before_B1HW = reached_B1HW
        for _ in range(STEPS_BETWEEN_LOOKS):
            reached_B1HW = (_neighbours(reached_B1HW[:, 0]) * is_open_BNHW).amax(1, keepdim=True)
        if torch.equal(before_B1HW, reached_B1HW):
            return reached_B1HW[:, 0] > 0


def _neighbours(values_BHW: Tensor) -> Tensor:
    """Each pixel's 3 x 3 neighbourhood, (B, 9, H, W); 0 outside the edge."""
    columns = functional.unfold(values_BHW[:, None], kernel_size=3, padding=1)
    return columns.view(len(values_BHW), 9, *values_BHW.shape[1:])
