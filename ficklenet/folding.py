"""Normalises the Grad-CAM of each sample and folds many of them: maximum, mean and votes.

Shape legend: any leading dimensions, then H W of the feature grid.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Normalization:
    """How the map of a sample is scaled to [0, 1] before the fold.

    ``"max"`` divides a map by its largest value. ``"percentile"`` divides it by an order statistic and clips to 1: with
    V positions, the value of rank ``ceil(percentile * V / 100)`` in ascending order (the first has rank 1; no
    interpolation). If this value is 0, because too few positions are positive, the map is divided by its largest value.
    An all-zero map remains zero.
    """

    kind: Literal["max", "percentile"] = "max"
    percentile: float = 90.0

    def __post_init__(self) -> None:
        if self.kind not in ("max", "percentile"):
            raise ValueError(f'normalization kind: "{self.kind}" given; give "max" or "percentile".')
        if not 0.0 < self.percentile <= 100.0:
            raise ValueError(f"normalization percentile: {self.percentile} given; give more than 0, at most 100.")

    def rank(self, num_positions: int) -> int:
        """The rank, from 1, of the divisor among a map's values in ascending order."""
        return num_positions if self.kind == "max" else math.ceil(self.percentile * num_positions / 100)

    def apply(self, maps: Tensor) -> Tensor:
        """Non-negative maps (..., H, W) scaled to [0, 1]."""
        values = maps.flatten(-2)
        largest = values.amax(-1)
        rank = self.rank(values.shape[-1])
        divisor = largest if self.kind == "max" else values.kthvalue(rank, dim=-1).values
        divisor = torch.where(divisor > 0, divisor, largest)
        divisor = torch.where(divisor > 0, divisor, torch.ones_like(divisor))
        return (maps / divisor[..., None, None]).clamp(max=1.0)


@dataclass(frozen=True)
class SampleFold:
    """The maximum, sum and votes over the maps of some samples. Folds of disjoint samples can be merged in any order.

    The sum is in float64, so the order changes a mean only beyond the precision of float32.

    Attributes:
        maximum: float32 (..., H, W).
        total: float64 (..., H, W), the sum.
        count: the number of samples.
        votes: int32 (..., H, W), the number of samples above the vote threshold; None without a threshold.
    """

    maximum: Tensor
    total: Tensor
    count: int
    votes: Tensor | None = None

    @classmethod
    def of(cls, maps: Tensor, dim: int = 0, vote_threshold: float | None = None) -> "SampleFold":
        """Folds maps over the dimension of the samples."""
        votes = None if vote_threshold is None else (maps > vote_threshold).sum(dim, dtype=torch.int32)
        return cls(maps.amax(dim), maps.sum(dim, dtype=torch.float64), maps.shape[dim], votes)

    def merge(self, other: "SampleFold") -> "SampleFold":
        """The fold of the samples of both folds. Either both or neither must have votes."""
        assert (self.votes is None) == (other.votes is None)
        votes = None if self.votes is None or other.votes is None else self.votes + other.votes
        return SampleFold(
            torch.maximum(self.maximum, other.maximum), self.total + other.total, self.count + other.count, votes
        )

    @property
    def mean(self) -> Tensor:
        return (self.total / self.count).to(self.maximum.dtype)

    @property
    def vote_share(self) -> Tensor | None:
        """The share of the samples that vote for a cell, uint8: ``255 * votes / count``, halves rounded up."""
        if self.votes is None:
            return None
        return ((2 * 255 * self.votes.long() + self.count) // (2 * self.count)).to(torch.uint8)
