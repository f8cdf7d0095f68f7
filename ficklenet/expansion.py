"""The literal method of the paper: map expansion, a strided convolution and Grad-CAM by autograd.

The tests use it as reference, and the benchmarks compare with it; nothing else in the project uses it. The expanded map
takes D times the memory of the features (279 MB for one image at paper size), and every sample needs a forward and a
backward pass.

Shape legend: B images, K channels, C classes, H W feature grid, D = s * s offsets, V = H * W positions.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ficklenet.masks import kernel_radius


def expand(features_BKHW: Tensor, kernel_size: int) -> Tensor:
    """The expanded map (B, K, s * H, s * W): all s x s windows of the zero-padded features, side by side.

    ``expanded[k, s * u + d + r] = padded[k, u + d]`` (FickleNet, section 3.3 and figure 3).
    """
    batch, channels, height, width = features_BKHW.shape
    windows = functional.unfold(features_BKHW, kernel_size, padding=kernel_radius(kernel_size))
    windows = windows.view(batch, channels, kernel_size, kernel_size, height, width)
    return windows.permute(0, 1, 4, 2, 5, 3).reshape(batch, channels, kernel_size * height, kernel_size * width)


def expand_masks(masks_BDV: Tensor, grid: tuple[int, int], kernel_size: int) -> Tensor:
    """Masks on the expanded map (B, 1, s * H, s * W): ``m[u, d] = M[d, u + d]``, 0 where u + d is padding.

    The value for window u and offset d is in the expansion of ``M[d]``, in window u at offset d.
    """
    masks_BDHW = masks_BDV.unflatten(2, grid)
    expanded = expand(masks_BDHW, kernel_size)  # (B, D, s * H, s * W): every M[d] at every offset
    batch, num_offsets, height, width = expanded.shape
    offset_of_cell = torch.arange(num_offsets, device=expanded.device).view(kernel_size, kernel_size)
    own_offset = offset_of_cell.repeat(grid).expand(batch, 1, height, width)
    return expanded.gather(1, own_offset)


def literal_logits(features_BKHW: Tensor, weight: Tensor, bias: Tensor, masks_BDV: Tensor) -> Tensor:
    """Logits (B, C): expands, drops, convolves with stride s and averages. ``weight`` is (C, K, s, s)."""
    height, width = features_BKHW.shape[2:]
    kernel_size = weight.shape[-1]
    masks = expand_masks(masks_BDV.to(features_BKHW.dtype), (height, width), kernel_size)
    return expanded_logits(expand(features_BKHW, kernel_size), weight, bias, masks)


def literal_maps(features_BKHW: Tensor, weight: Tensor, bias: Tensor, masks_BDV: Tensor) -> Tensor:
    """One sample's Grad-CAM before ReLU (B, C, H, W): ``sum_k x_k dS^c / dx_k`` by autograd."""
    features_BKHW = features_BKHW.detach().requires_grad_()
    logits_BC = literal_logits(features_BKHW, weight, bias, masks_BDV)
    maps = []
    for logits_B in logits_BC.unbind(1):
        (gradient_BKHW,) = torch.autograd.grad(logits_B.sum(), features_BKHW, retain_graph=True)
        maps.append((features_BKHW.detach() * gradient_BKHW).sum(1))
    return torch.stack(maps, 1)


def expanded_logits(expanded: Tensor, weight: Tensor, bias: Tensor, expanded_mask: Tensor) -> Tensor:
    """Logits (B, C) of an expanded map with a mask (B, 1, s * H, s * W) of its cells."""
    score_BCHW = functional.conv2d(expanded * expanded_mask, weight, bias, stride=weight.shape[-1])
    return score_BCHW.mean((2, 3))


def expanded_map(expanded: Tensor, weight: Tensor, bias: Tensor, expanded_mask: Tensor) -> Tensor:
    """One class's Grad-CAM before ReLU (B, H, W) of an expanded map: the cheapest literal form.

    The result is that of ``literal_maps``. The map is expanded only once for all samples. The gradient is multiplied
    and summed over channels on the expanded map, so that only one channel instead of K is summed over the windows.
    """
    kernel_size = weight.shape[-1]
    batch, _, height, width = expanded.shape
    grid = height // kernel_size, width // kernel_size
    expanded = expanded.detach().requires_grad_()
    logits_B1 = expanded_logits(expanded, weight, bias, expanded_mask)
    (gradient,) = torch.autograd.grad(logits_B1.sum(), expanded)
    cells = gradient.mul_(expanded.detach()).sum(1).view(batch, grid[0], kernel_size, grid[1], kernel_size)
    windows = cells.permute(0, 2, 4, 1, 3).reshape(batch, kernel_size**2, grid[0] * grid[1])
    return functional.fold(windows, grid, kernel_size, padding=kernel_radius(kernel_size))[:, 0]
