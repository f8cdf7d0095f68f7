"""The fully connected CRF without approximation: mean field over all pairs of cells, in plain torch, for batches.

At 41 x 41 the bilateral kernel is a dense matrix of 1,681 x 1,681 (11 MB per image), which is made once per image and
step. This is fast on a GPU. On a CPU it is the reference for ``ficklenet.crf``, which approximates the same kernel on a
lattice. The Gaussian kernel is the product of a kernel over rows and a kernel over columns, so it is never made as a
whole.

All labels take part, also those that an image does not have. They get some probability in every iteration, so leaving
them out would change the result. They cost little on a GPU: an iteration takes the time of reading the kernel, which is
read once for all labels.

Shape legend: B images, L labels, H W grid, V = H * W cells, F features of a cell.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ficklenet.arguments import require_tensor
from ficklenet.crf import LEAST_PROBABILITY, CrfParameters

MULTIPLE = 8  # of the padded number of cells
_BYTE = 256


@torch.no_grad()
def refine_exactly(
    probabilities_BLHW: Tensor,
    images_BCHW: Tensor,
    parameters: CrfParameters,
    *,
    kernel_type: torch.dtype = torch.float32,
) -> Tensor:
    """The marginals after mean-field inference (Kraehenbuehl and Koltun, NIPS 2011, algorithm 1): (B, L, H, W).

    As by default in pydensecrf, both kernels are divided by the square roots of both cells' sums, and each cell is also
    its own neighbour.

    Args:
        probabilities_BLHW: the probabilities of the labels, float, which sum to 1.
        images_BCHW: RGB in 0..255, (B, 3, H, W), any dtype. With whole numbers, colour distances are exact.
        parameters: the parameters, with distances in cells of this grid.
        kernel_type: the precision of the products with the bilateral kernel. float16 halves what each iteration reads
            on a GPU. On drawn images it moved no argmax; marginals changed by at most 0.01, on average by 1e-6.

    Raises:
        ValueError: a tensor has another shape, or the sizes differ.
    """
    require_tensor(probabilities_BLHW, "floats", ("B", "L", "H", "W"), "refine_exactly", "probabilities_BLHW")
    batch, _, *grid = probabilities_BLHW.shape
    require_tensor(images_BCHW, "numbers", (batch, 3, *grid), "refine_exactly", "images_BCHW", ", in 0 to 255")
    is_log = parameters.energy == "log"
    evidence_BLHW = probabilities_BLHW.clamp(min=LEAST_PROBABILITY).log() if is_log else probabilities_BLHW
    alike_BVV = bilateral_kernel(images_BCHW, parameters)
    root_B1V = (parameters.bilateral_weight / alike_BVV.sum(2, keepdim=True)).sqrt().transpose(1, 2)
    num_cells, root_B1V = alike_BVV.shape[1], root_B1V.to(evidence_BLHW.dtype)
    alike_BVV = _padded(alike_BVV, kernel_type)
    near_HH, near_WW = (
        _normalized_gaussian(length, parameters.gaussian_distance, evidence_BLHW) for length in images_BCHW.shape[2:]
    )
    marginals_BLHW = evidence_BLHW.softmax(1)
    for _ in range(parameters.num_iterations):
        shares_BLV = functional.pad(marginals_BLHW.flatten(2) * root_B1V, (0, -num_cells % MULTIPLE)).to(kernel_type)
        support_BLV = (shares_BLV @ alike_BVV)[..., :num_cells].to(root_B1V.dtype) * root_B1V
        support_BLHW = parameters.gaussian_weight * (near_HH @ marginals_BLHW @ near_WW)
        # Potts model: cells with the same label support each other.
        marginals_BLHW = (evidence_BLHW + support_BLV.view_as(support_BLHW) + support_BLHW).softmax(1)
    return marginals_BLHW


def bilateral_kernel(images_BCHW: Tensor, parameters: CrfParameters) -> Tensor:
    """The similarity of each pair of cells in colour and position, in (0, 1]: symmetric float32 (B, V, V).

    It is not weighted or normalised yet. The squared distances of colours are a matrix product of whole numbers up to
    761 with sums below 2^24, so they are exact, even if a GPU multiplies in TF32.
    """
    require_tensor(images_BCHW, "numbers", ("B", 3, "H", "W"), "bilateral_kernel", "images_BCHW", ", in 0 to 255")
    height, width = images_BCHW.shape[2:]
    colours_BVC = images_BCHW.float().flatten(2).transpose(1, 2)
    high_BV1 = (colours_BVC.square().sum(2, keepdim=True) / _BYTE).floor()
    low_BV1 = colours_BVC.square().sum(2, keepdim=True) - _BYTE * high_BV1
    one_BV1 = torch.ones_like(low_BV1)
    # (a - b)^2 = -2 a b + a^2 + b^2, the squares in two digits
    left_BVF = torch.cat([-2 * colours_BVC, high_BV1, low_BV1, _BYTE * one_BV1, one_BV1], dim=2)
    right_BFV = torch.cat([colours_BVC, _BYTE * one_BV1, one_BV1, high_BV1, low_BV1], dim=2).transpose(1, 2)
    ticks = [torch.arange(length, device=images_BCHW.device, dtype=torch.float32) for length in (height, width)]
    row_V, col_V = torch.cartesian_prod(*ticks).view(-1, 2).T
    apart_VV = (row_V[:, None] - row_V).square() + (col_V[:, None] - col_V).square()
    squared_BVV = torch.bmm(left_BVF, right_BFV)  # not baddbmm, which scales before it sums and so rounds
    near_VV = apart_VV * (-0.5 / parameters.bilateral_distance**2)
    return torch.add(near_VV, squared_BVV, alpha=-0.5 / parameters.bilateral_colour**2, out=squared_BVV).exp_()


def _padded(kernel_BVV: Tensor, kernel_type: torch.dtype) -> Tensor:
    """The kernel in another precision, with rows and columns of zeros: GPUs multiply aligned rows faster."""
    batch, num_cells, _ = kernel_BVV.shape
    size = num_cells + -num_cells % MULTIPLE
    padded_BVV = kernel_BVV.new_zeros(batch, size, size, dtype=kernel_type)
    padded_BVV[:, :num_cells, :num_cells] = kernel_BVV
    return padded_BVV


def _normalized_gaussian(length: int, distance: float, like: Tensor) -> Tensor:
    """The Gaussian kernel along one side, divided by the square roots of both cells' sums: (length, length).

    The kernel of two cells, and its sums, are products over rows and columns.
    """
    ticks = torch.arange(length, device=like.device, dtype=like.dtype)
    kernel = ((ticks[:, None] - ticks).square() * (-0.5 / distance**2)).exp()
    root = kernel.sum(1).rsqrt()
    return kernel * root[:, None] * root
