"""The fully connected CRF without approximation: mean field over every pair of cells, in plain torch, for batches.

At 41 x 41 the pairwise kernel is a dense matrix of 1,681 x 1,681 (11 MB an image), made once per image and step. It is
the fast way on a GPU; on a CPU it is the oracle of ``ficklenet.crf``, whose lattice approximates the same kernel.

Shape legend: B images, L labels, H W grid, V = H * W cells.
"""

import torch
from torch import Tensor

from ficklenet.crf import LEAST_PROBABILITY, CrfParameters


@torch.no_grad()
def refine_exactly(probabilities_BLHW: Tensor, images_BCHW: Tensor, parameters: CrfParameters) -> Tensor:
    """Marginals after mean-field inference (Kraehenbuehl and Koltun, NIPS 2011, algorithm 1): (B, L, H, W).

    Args:
        probabilities_BLHW: float, of each label, summing to 1; the unary term is their negative logarithm.
        images_BCHW: RGB in 0..255, (B, 3, H, W), any dtype.
        parameters: distances in cells of this grid.
    """
    evidence_BLV = probabilities_BLHW.clamp(min=LEAST_PROBABILITY).log().flatten(2)
    kernel_BVV = pairwise_kernel(images_BCHW, parameters).to(evidence_BLV.dtype)
    marginals_BLV = evidence_BLV.softmax(1)
    for _ in range(parameters.num_iterations):
        marginals_BLV = (evidence_BLV + marginals_BLV @ kernel_BVV).softmax(1)  # Potts: agreeing cells support it
    return marginals_BLV.view_as(probabilities_BLHW)


def pairwise_kernel(images_BCHW: Tensor, parameters: CrfParameters) -> Tensor:
    """How strongly each pair of cells supports equal labels, symmetric float32 (B, V, V).

    The sum of the bilateral and the Gaussian kernel, each divided by the roots of both cells' sums and weighted; a cell
    is its own neighbour too (both as pydensecrf does it by default).
    """
    height, width = images_BCHW.shape[2:]
    ticks = [torch.arange(length, device=images_BCHW.device, dtype=torch.float32) for length in (height, width)]
    places_VD = torch.cartesian_prod(*ticks).view(height * width, 2)
    colours_BVC = images_BCHW.float().flatten(2).transpose(1, 2)
    near_B1VV = _gaussian(places_VD[None] / parameters.gaussian_distance)
    by_place_1VD = (places_VD / parameters.bilateral_distance).expand(len(images_BCHW), -1, -1)
    alike_BVV = _gaussian(torch.cat([by_place_1VD, colours_BVC / parameters.bilateral_colour], dim=2))
    return parameters.bilateral_weight * _normalized(alike_BVV) + parameters.gaussian_weight * _normalized(near_B1VV)


def _gaussian(features_BVF: Tensor) -> Tensor:
    return torch.cdist(features_BVF, features_BVF, compute_mode="donot_use_mm_for_euclid_dist").square().mul(-0.5).exp()


def _normalized(kernel_BVV: Tensor) -> Tensor:
    root_BV = kernel_BVV.sum(2).rsqrt()
    return kernel_BVV * root_BV[:, :, None] * root_BV[:, None, :]
