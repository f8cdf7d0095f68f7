"""The stochastic classifier head, without the map expansion.

FickleNet slides an s x s window over the features, drops random features of each window, applies one s x s convolution
K -> C and averages over all windows. Everything after the backbone is linear, so the average can be taken first. With
the masks ``M[d, v]`` of ``ficklenet.masks`` and V = H * W positions:

    G[k, d]    = 1/V sum_v M[d, v] x[k, v]              pooled features, one (K x V)(V x D) product
    S[c]       = b[c] + sum_{k,d} W[c, k, d] G[k, d]    logit: a linear layer on G
    A[c, d, v] = sum_k W[c, k, d] x[k, v]               affinity: the contribution of v to c at offset d

Logits, gradients and Grad-CAM maps equal those of the paper's expansion (``ficklenet.expansion``), but no expanded map
is made.

Shape legend: B images, S slots (wanted classes), C classes, K channels, H W feature grid, D offsets, V
positions.
"""

import torch
from torch import Tensor, nn

from ficklenet.masks import expected_mask, kernel_radius


class StochasticHead(nn.Module):
    """One s x s convolution K -> C over windows with random dropout, then the average (FickleNet, section 3.1)."""

    def __init__(self, in_channels: int, num_classes: int, kernel_size: int) -> None:
        super().__init__()
        kernel_radius(kernel_size)  # refuses even sizes
        self.kernel_size = kernel_size
        self.weight = nn.Parameter(torch.empty(num_classes, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(num_classes))
        nn.init.normal_(self.weight, std=0.01)

    @property
    def num_classes(self) -> int:
        return self.weight.shape[0]

    def forward(self, features_BKHW: Tensor, masks_BDV: Tensor) -> Tensor:
        """Logits (B, C) of one stochastic pass.

        Args:
            masks_BDV: 0 and 1, or an expectation, also (1, D, V) for all images. Rows after the D offsets are ignored.
        """
        features_BVK = features_BKHW.flatten(2).mT  # contiguous in channels_last, and so is its gradient
        pooled_BDK = masks_BDV.to(features_BVK.dtype) @ features_BVK / features_BVK.shape[1]
        pooled_BKD = pooled_BDK[:, : self.kernel_size**2].mT
        return nn.functional.linear(pooled_BKD.flatten(1), self.weight.flatten(1), self.bias)

    def expected_logits(self, features_BKHW: Tensor, drop_rate: float) -> Tensor:
        """The expectation of the logits (B, C) over the masks: a score without sampling noise."""
        height, width = features_BKHW.shape[2:]
        mask_DV = expected_mask(
            self.kernel_size,
            (height, width),
            drop_rate,
            dtype=features_BKHW.dtype,
            device=features_BKHW.device,
        )
        return self(features_BKHW, mask_DV[None])

    def affinity(self, features_BKHW: Tensor, classes_BS: Tensor) -> Tensor:
        """The affinity (B, S, D, V) of each image's wanted classes; all class numbers must be in [0, C)."""
        weight_BSDK = self.weight.flatten(2).mT[classes_BS]
        affinity = weight_BSDK.flatten(1, 2) @ features_BKHW.flatten(2)  # (B, S * D, V)
        return affinity.unflatten(1, weight_BSDK.shape[1:3])
