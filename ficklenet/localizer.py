"""Localisation maps: N stochastic Grad-CAMs per image and wanted class, folded to their maximum and mean.

With the affinity ``A[c, d, v]`` of ``ficklenet.head`` the Grad-CAM of one sample is ``ReLU(1/V sum_d M[d, v]
A[c, d, v])``: exactly ``ReLU(sum_k x_k dS^c / dx_k)`` of that sample's logit, without autograd. The backbone
runs once per image.

The samples are drawn in plain torch on any device, by ``ficklenet.compiled`` on a CPU where numba is installed,
or by ``ficklenet.triton_sampler`` on a GPU where Triton is: the same masks bit for bit, maps equal to rounding.

Shape legend: B images, S slots (an image's wanted classes, -1 = empty), N samples, K channels, H W feature
grid, D offsets, V = H * W positions.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from ficklenet.folding import Normalization, SampleFold
from ficklenet.head import StochasticHead
from ficklenet.masks import INFERENCE_STREAM, dropout_masks, expected_mask

MASK_ELEMENTS_PER_CHUNK = 2**24  # bounds the dense path: 64 MiB of float32 masks at a time

Sampler = Literal["compiled", "triton", "dense"]
SAMPLER_NEEDS: dict[Sampler, str] = {
    "compiled": "float32 features on a CPU, and numba",
    "triton": "float32 features on a GPU, and Triton",
    "dense": "nothing",
}


@dataclass(frozen=True)
class LocalizationMaps:
    """Folded maps of a batch; NaN in empty slots."""

    max_BSHW: Tensor  # in [0, 1]
    mean_BSHW: Tensor  # in [0, 1]
    score_BS: Tensor  # expected logit


@torch.no_grad()
def localize(
    features_BKHW: Tensor,
    head: StochasticHead,
    classes_BS: Tensor,
    keys: Sequence[int],
    *,
    num_samples: int,
    drop_rate: float,
    normalization: Normalization,
    sampler: Sampler | None = None,
) -> LocalizationMaps:
    """Maximum and mean of N normalised stochastic Grad-CAMs for each image's wanted classes.

    Args:
        features_BKHW: the backbone's output, on the head's device.
        head: the trained head.
        classes_BS: int64 class numbers in [0, C), -1 in empty slots.
        keys: one ``ficklenet.masks.mask_key`` per image.
        num_samples: N; the samples are 0 .. N - 1 of the inference stream.
        drop_rate: p, the probability of dropping an offset other than the centre.
        normalization: how each sample's map is scaled before the fold.
        sampler: which one draws; by default the first of ``samplers_for`` these features.

    Returns:
        Maps in [0, 1] and expected logits, float32, on the features' device; NaN in empty slots. Cell (row,
        col) lies at input pixel (8 * row, 8 * col).

    Raises:
        ValueError: classes outside the class list, keys or rows of classes that do not match the images, no
            samples, or a sampler where it cannot run.
    """
    _check_request(features_BKHW, head, classes_BS, keys)
    if num_samples < 1:
        raise ValueError(f"num_samples: {num_samples} given; give at least 1.")
    usable = samplers_for(features_BKHW.device, features_BKHW.dtype)
    sampler = sampler or usable[0]
    if sampler not in usable:
        raise ValueError(f'sampler: "{sampler}" given; it needs {SAMPLER_NEEDS[sampler]}. Give "dense".')
    paths = {"compiled": _localize_compiled, "triton": _localize_triton, "dense": _localize_dense}
    return paths[sampler](features_BKHW, head, classes_BS, keys, range(num_samples), drop_rate, normalization)


@torch.no_grad()
def deterministic_maps(
    features_BKHW: Tensor,
    head: StochasticHead,
    classes_BS: Tensor,
    *,
    drop_rate: float,
    normalization: Normalization,
) -> Tensor:
    """The baseline without sampling: the normalised Grad-CAM of the expected logit.

    Returns:
        float32 (B, S, H, W) in [0, 1], NaN in empty slots. Arguments as in ``localize``.
    """
    _check_request(features_BKHW, head, classes_BS, keys=None)
    affinity_BSDV = head.affinity(features_BKHW.to(head.weight.dtype), classes_BS.clamp(min=0))
    evidence_BSHW = expected_evidence(affinity_BSDV, grid=_grid(features_BKHW), drop_rate=drop_rate)
    return _blank_empty_slots(normalization.apply(evidence_BSHW.relu()), classes_BS)


def samplers_for(device: torch.device | str, dtype: torch.dtype = torch.float32) -> list[Sampler]:
    """The samplers that can run for such features, the fastest first."""
    usable: list[Sampler] = ["dense"]
    if dtype == torch.float32:
        triton_sampler = _triton_sampler()
        if triton_sampler is not None and triton_sampler.runs_on(torch.device(device)):
            usable.insert(0, "triton")
        if torch.device(device).type == "cpu" and _compiled() is not None:
            usable.insert(0, "compiled")
    return usable


def sample_evidence(affinity_BSDV: Tensor, masks_BNDV: Tensor, grid: tuple[int, int]) -> Tensor:
    """Each sample's Grad-CAM before ReLU, (N, B, S, H, W); it sums to the sample's logit less the bias."""
    masks_BNDV = masks_BNDV.to(affinity_BSDV.dtype)
    evidence = torch.einsum("bndv,bsdv->nbsv", masks_BNDV, affinity_BSDV) / affinity_BSDV.shape[-1]
    return evidence.unflatten(-1, grid)


def expected_evidence(affinity_BSDV: Tensor, grid: tuple[int, int], drop_rate: float) -> Tensor:
    """The same in expectation over the masks, (B, S, H, W)."""
    kernel_size = math.isqrt(affinity_BSDV.shape[2])
    dtype, device = affinity_BSDV.dtype, affinity_BSDV.device
    mask_DV = expected_mask(kernel_size, grid, drop_rate, dtype=dtype, device=device)
    return ((affinity_BSDV * mask_DV).sum(2) / affinity_BSDV.shape[-1]).unflatten(-1, grid)


def fold_samples(
    affinity_BSDV: Tensor,
    keys: Sequence[int],
    samples: range,
    *,
    grid: tuple[int, int],
    drop_rate: float,
    normalization: Normalization,
) -> SampleFold:
    """Draws, normalises and folds some samples in plain torch, a chunk of samples at a time: (B, S, H, W)."""
    kernel_size = math.isqrt(affinity_BSDV.shape[2])

    def fold_chunk(chunk: range) -> SampleFold:
        masks_BNDV = dropout_masks(
            keys,
            chunk,
            kernel_size=kernel_size,
            grid=grid,
            drop_rate=drop_rate,
            stream=INFERENCE_STREAM,
            device=affinity_BSDV.device,
        )
        return SampleFold.of(normalization.apply(sample_evidence(affinity_BSDV, masks_BNDV, grid).relu()))

    elements_per_sample = len(keys) * kernel_size**2 * grid[0] * grid[1]
    chunk_size = max(1, MASK_ELEMENTS_PER_CHUNK // elements_per_sample)
    return functools.reduce(SampleFold.merge, map(fold_chunk, _chunks(samples, chunk_size)))


def _localize_dense(
    features_BKHW: Tensor,
    head: StochasticHead,
    classes_BS: Tensor,
    keys: Sequence[int],
    samples: range,
    drop_rate: float,
    normalization: Normalization,
) -> LocalizationMaps:
    grid = _grid(features_BKHW)
    real_classes_BS = classes_BS.clamp(min=0)  # an empty slot is computed for some class, then blanked
    affinity_BSDV = head.affinity(features_BKHW.to(head.weight.dtype), real_classes_BS)
    fold = fold_samples(affinity_BSDV, keys, samples, grid=grid, drop_rate=drop_rate, normalization=normalization)
    score_BS = _expected_score(affinity_BSDV, head, real_classes_BS, grid, drop_rate)
    return LocalizationMaps(
        _blank_empty_slots(fold.maximum, classes_BS),
        _blank_empty_slots(fold.mean, classes_BS),
        _blank_empty_slots(score_BS, classes_BS),
    )


def _localize_compiled(
    features_BKHW: Tensor,
    head: StochasticHead,
    classes_BS: Tensor,
    keys: Sequence[int],
    samples: range,
    drop_rate: float,
    normalization: Normalization,
) -> LocalizationMaps:
    compiled, grid = _compiled(), _grid(features_BKHW)
    assert compiled is not None
    max_BSHW = features_BKHW.new_full((*classes_BS.shape, *grid), math.nan)
    mean_BSHW, score_BS = max_BSHW.clone(), max_BSHW[:, :, 0, 0].clone()
    for image, key in enumerate(keys):
        slots = (classes_BS[image] >= 0).nonzero()[:, 0]
        if len(slots) == 0:
            continue
        classes_1S = classes_BS[image : image + 1, slots]
        affinity_1SDV = head.affinity(features_BKHW[image : image + 1], classes_1S)
        maximum, total = compiled.fold_samples(
            affinity_1SDV[0].numpy(),
            key,
            samples,
            grid=grid,
            drop_rate=drop_rate,
            rank=normalization.rank(grid[0] * grid[1]),
        )
        fold = SampleFold(torch.from_numpy(maximum), torch.from_numpy(total), len(samples))
        max_BSHW[image, slots], mean_BSHW[image, slots] = fold.maximum, fold.mean
        score_BS[image, slots] = _expected_score(affinity_1SDV, head, classes_1S, grid, drop_rate)[0]
    return LocalizationMaps(max_BSHW, mean_BSHW, score_BS)


def _localize_triton(
    features_BKHW: Tensor,
    head: StochasticHead,
    classes_BS: Tensor,
    keys: Sequence[int],
    samples: range,
    drop_rate: float,
    normalization: Normalization,
) -> LocalizationMaps:
    triton_sampler, grid = _triton_sampler(), _grid(features_BKHW)
    assert triton_sampler is not None
    max_BSHW = features_BKHW.new_full((*classes_BS.shape, *grid), math.nan)
    mean_BSHW, score_BS = max_BSHW.clone(), max_BSHW[:, :, 0, 0].clone()
    images_R, slots_R = (classes_BS >= 0).nonzero(as_tuple=True)  # a row per filled slot, image by image
    if len(images_R):
        classes_R = classes_BS[images_R, slots_R]
        affinity_RDV = head.affinity(features_BKHW[images_R], classes_R[:, None])[:, 0]
        fold = triton_sampler.fold_samples(
            affinity_RDV, images_R, keys, samples, grid=grid, drop_rate=drop_rate, normalization=normalization
        )
        max_BSHW[images_R, slots_R], mean_BSHW[images_R, slots_R] = fold.maximum, fold.mean
        score_1R = _expected_score(affinity_RDV[None], head, classes_R[None], grid, drop_rate)
        score_BS[images_R, slots_R] = score_1R[0]
    return LocalizationMaps(max_BSHW, mean_BSHW, score_BS)


def _expected_score(
    affinity_BSDV: Tensor, head: StochasticHead, classes_BS: Tensor, grid: tuple[int, int], drop_rate: float
) -> Tensor:
    return head.bias[classes_BS] + expected_evidence(affinity_BSDV, grid, drop_rate).sum((2, 3))


@functools.cache
def _compiled() -> ModuleType | None:
    """The compiled sampler, or None where numba is absent (a bare GPU machine)."""
    try:
        from ficklenet import compiled
    except ImportError:
        return None
    return compiled


@functools.cache
def _triton_sampler() -> ModuleType | None:
    """The GPU sampler, or None where Triton is absent."""
    try:
        from ficklenet import triton_sampler
    except ImportError:
        return None
    return triton_sampler


def _blank_empty_slots(values_BS: Tensor, classes_BS: Tensor) -> Tensor:
    empty = (classes_BS < 0).view(*classes_BS.shape, *[1] * (values_BS.ndim - 2))
    return values_BS.float().masked_fill(empty, math.nan)


def _chunks(samples: range, size: int) -> Iterator[range]:
    return (samples[start : start + size] for start in range(0, len(samples), size))


def _grid(features_BKHW: Tensor) -> tuple[int, int]:
    return features_BKHW.shape[2], features_BKHW.shape[3]


def _check_request(features_BKHW: Tensor, head: StochasticHead, classes_BS: Tensor, keys: Sequence[int] | None) -> None:
    num_images = len(features_BKHW)
    if len(classes_BS) != num_images or (keys is not None and len(keys) != num_images):
        raise ValueError(
            f"localisation: {num_images} images, {len(classes_BS)} rows of classes and "
            f"{num_images if keys is None else len(keys)} keys given; give one row and one key per image."
        )
    if classes_BS.numel() and not -1 <= int(classes_BS.min()) <= int(classes_BS.max()) < head.num_classes:
        raise ValueError(
            f"localisation: classes from {int(classes_BS.min())} to {int(classes_BS.max())} given; "
            f"the classifier has classes 0 to {head.num_classes - 1}, and -1 marks an empty slot."
        )
