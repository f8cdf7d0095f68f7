"""Localisation maps: N stochastic Grad-CAMs per image and wanted class, folded to their maximum, mean and votes.

With the affinity ``A[c, d, v]`` of ``ficklenet.head``, the Grad-CAM of a sample is ``ReLU(1/V sum_d M[d, v] A[c, d,
v])``. It equals ``ReLU(sum_k x_k dS^c / dx_k)`` of this sample's logit exactly, without autograd. The backbone runs
once per image.

Three samplers draw the same masks, bit for bit, and give the same maps up to rounding: ``ficklenet.dense_sampler`` in
plain torch on any device, ``ficklenet.compiled`` on a CPU with numba, and ``ficklenet.triton_sampler`` on a GPU with
Triton.

Shape legend: B images, S slots (an image's wanted classes, -1 = empty), N samples, K channels, H W feature
grid, D offsets, V = H * W positions.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from ficklenet import dense_sampler
from ficklenet.arguments import require_integer, require_one_per_image, require_tensor
from ficklenet.dense_sampler import expected_evidence, expected_score
from ficklenet.folding import Normalization, SampleFold
from ficklenet.gpu_kernels import kernels_for, sent
from ficklenet.head import StochasticHead

Sampler = Literal["compiled", "triton", "dense"]
SAMPLER_NEEDS: dict[Sampler, str] = {
    "compiled": "float32 features on a CPU, and numba",
    "triton": "float32 features on a GPU, and Triton",
    "dense": "nothing",
}


@dataclass(frozen=True)
class LocalizationMaps:
    """The folded maps of a batch.

    Attributes:
        max_BSHW, mean_BSHW: float32 in [0, 1], NaN in empty slots.
        score_BS: float32, the expected logit, NaN in empty slots.
        votes_BSHW: uint8, the share of the samples with a normalised map above the vote threshold, as
            ``255 * count / N``, rounded (halves up); 0 in empty slots. None without a threshold.
    """

    max_BSHW: Tensor
    mean_BSHW: Tensor
    score_BS: Tensor
    votes_BSHW: Tensor | None = None


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
    vote_threshold: float | None = None,
) -> LocalizationMaps:
    """Maximum, mean and votes of N normalised stochastic Grad-CAMs for each image's wanted classes.

    Args:
        features_BKHW: the backbone's output, on the head's device.
        head: the trained head.
        classes_BS: int64 class numbers in [0, C), -1 in empty slots. If they are on the CPU, nothing here waits for a
            GPU.
        keys: one ``ficklenet.masks.mask_key`` per image.
        num_samples: N; the samples are 0 .. N - 1 of the inference stream.
        drop_rate: p, the probability of dropping an offset other than the centre.
        normalization: how each sample's map is scaled before the fold.
        sampler: the sampler to use; by default the first one of ``samplers_for``.
        vote_threshold: theta, from 0 to below 1: a sample votes for the cells where its normalised map exceeds it.
            None: votes are not computed and take no time.

    Returns:
        Maps, votes and expected logits, on the device of the features.

    Raises:
        ValueError: a tensor has another type or shape than these, classes are outside the class list, keys or rows of
            classes do not match the images, there are no samples, the vote threshold is out of range, the
            normalization is no ``Normalization``, or the sampler cannot run here.
    """
    classes_BS = _checked_request(features_BKHW, head, classes_BS, keys, normalization, "localize", "cpu")
    require_integer(num_samples, 1, "localize", "num_samples")
    usable = samplers_for(features_BKHW.device, features_BKHW.dtype)
    sampler = sampler or usable[0]
    if sampler not in usable:
        raise ValueError(f'sampler: "{sampler}" given; it needs {SAMPLER_NEEDS[sampler]}. Give "dense".')
    if vote_threshold is not None and not 0.0 <= vote_threshold < 1.0:
        raise ValueError(f"vote_threshold: {vote_threshold} given; maps are in [0, 1], so give 0 to below 1.")
    grid = _grid(features_BKHW)
    maps = _blank_maps((*classes_BS.shape, *grid), features_BKHW.device, has_votes=vote_threshold is not None)
    triton_sampler = kernels_for("triton_sampler", features_BKHW.device)
    module = {"compiled": _compiled(), "triton": triton_sampler, "dense": dense_sampler}[sampler]
    assert module is not None  # it can run here
    fold_samples = functools.partial(
        module.fold_samples,
        samples=range(num_samples),
        grid=grid,
        drop_rate=drop_rate,
        normalization=normalization,
        vote_threshold=vote_threshold,
    )
    fill = _fill_all_rows if sampler == "triton" else _fill_image_by_image
    fill(maps, fold_samples, features_BKHW, head, classes_BS, keys, drop_rate)
    return maps


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

    Raises:
        ValueError: as in ``localize``.
    """
    classes_BS = _checked_request(features_BKHW, head, classes_BS, None, normalization, "deterministic_maps")
    affinity_BSDV = head.affinity(features_BKHW.to(head.weight.dtype), classes_BS.clamp(min=0))
    evidence_BSHW = expected_evidence(affinity_BSDV, grid=_grid(features_BKHW), drop_rate=drop_rate)
    maps_BSHW = normalization.apply(evidence_BSHW.relu()).float()
    return maps_BSHW.masked_fill((classes_BS < 0)[:, :, None, None], math.nan)


def samplers_for(device: torch.device | str, dtype: torch.dtype = torch.float32) -> list[Sampler]:
    """The samplers that can run for such features, the fastest first."""
    usable: list[Sampler] = ["dense"]
    if dtype == torch.float32:
        if kernels_for("triton_sampler", device) is not None:
            usable.insert(0, "triton")
        if torch.device(device).type == "cpu" and _compiled() is not None:
            usable.insert(0, "compiled")
    return usable


def _blank_maps(shape: tuple[int, ...], device: torch.device, *, has_votes: bool) -> LocalizationMaps:
    """Maps (B, S, H, W) in which every slot is empty."""
    maximum, mean = (torch.full(shape, math.nan, device=device) for _ in range(2))
    votes = torch.zeros(shape, dtype=torch.uint8, device=device) if has_votes else None
    return LocalizationMaps(maximum, mean, torch.full(shape[:2], math.nan, device=device), votes)


def _fill_image_by_image(
    maps: LocalizationMaps,
    fold_samples: Callable[..., SampleFold],
    features_BKHW: Tensor,
    head: StochasticHead,
    classes_BS: Tensor,
    keys: Sequence[int],
    drop_rate: float,
) -> None:
    """For the compiled and the plain torch sampler: one image at a time, to limit the memory."""
    for image, key in enumerate(keys):
        slots_1S = (classes_BS[image] >= 0).nonzero().T
        if slots_1S.numel() == 0:
            continue
        classes_1S = classes_BS[image, slots_1S]
        features_1KHW = features_BKHW[image : image + 1].to(head.weight.dtype)
        affinity_1SDV = head.affinity(features_1KHW, classes_1S)
        score_1S = expected_score(affinity_1SDV, head.bias[classes_1S], _grid(features_BKHW), drop_rate)
        _fill(maps, torch.full_like(slots_1S, image), slots_1S, fold_samples(affinity_1SDV, [key]), score_1S)


def _fill_all_rows(
    maps: LocalizationMaps,
    fold_samples: Callable[..., SampleFold],
    features_BKHW: Tensor,
    head: StochasticHead,
    classes_BS: Tensor,
    keys: Sequence[int],
    drop_rate: float,
) -> None:
    """For the GPU sampler: all images together, with one row for each used slot, image by image."""
    images_R, slots_R = (classes_BS >= 0).nonzero(as_tuple=True)
    if len(images_R) == 0:
        return
    classes_R = classes_BS[images_R, slots_R]
    affinity_RDV = _affinity_of_rows(head, features_BKHW, images_R, classes_R)
    bias_1R = head.bias[sent(classes_R, head.bias.device)][None]
    score_1R = expected_score(affinity_RDV[None], bias_1R, _grid(features_BKHW), drop_rate)
    rows = sent(images_R, maps.max_BSHW.device), sent(slots_R, maps.max_BSHW.device)
    _fill(maps, *rows, fold_samples(affinity_RDV, images_R, keys), score_1R[0])


def _affinity_of_rows(head: StochasticHead, features_BKHW: Tensor, images_R: Tensor, classes_R: Tensor) -> Tensor:
    """The affinity (R, D, V) of rows, which are in the order of their images; both numbers are on the CPU.

    One product for all classes of an image is twice as fast as one for each class, so images with the same number of
    classes are computed together.
    """
    device, counts_B = features_BKHW.device, torch.bincount(images_R, minlength=len(features_BKHW))
    parts, order = [], []
    for count in counts_B[counts_B > 0].unique().tolist():
        images, is_part = (counts_B == count).nonzero()[:, 0], counts_B[images_R] == count
        features = features_BKHW if len(images) == len(features_BKHW) else features_BKHW[sent(images, device)]
        classes_BS = classes_R[is_part].view(len(images), count)
        parts.append(head.affinity(features, sent(classes_BS, device)).flatten(0, 1))
        order.append(is_part.nonzero()[:, 0])
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts)[sent(torch.cat(order).argsort(), device)]


def _fill(maps: LocalizationMaps, images: Tensor, slots: Tensor, fold: SampleFold, score: Tensor) -> None:
    """Writes a fold and its scores into slots of images; the shapes before H and W are the same."""
    maps.max_BSHW[images, slots] = fold.maximum.float()
    maps.mean_BSHW[images, slots] = fold.mean.float()
    maps.score_BS[images, slots] = score.float()
    votes = fold.vote_share
    if maps.votes_BSHW is not None and votes is not None:
        maps.votes_BSHW[images, slots] = votes


@functools.cache
def _compiled() -> ModuleType | None:
    """The compiled sampler, or None if numba is not installed, as on some GPU machines."""
    try:
        from ficklenet import compiled
    except ImportError:
        return None
    return compiled


def _grid(features_BKHW: Tensor) -> tuple[int, int]:
    return features_BKHW.shape[2], features_BKHW.shape[3]


def _checked_request(
    features_BKHW: Tensor,
    head: StochasticHead,
    classes_BS: Tensor,
    keys: Sequence[int] | None,
    normalization: Normalization,
    asked_by: str,
    device: str | None = None,
) -> Tensor:
    """The classes as int64, on a device if one is given; raises what ``localize`` raises."""
    if not isinstance(head, StochasticHead):
        raise ValueError(
            f"{asked_by}: head: given a {type(head).__name__}, allowed: a StochasticHead, such as model.head."
        )
    example = ", such as torch.tensor([[0]]) for class 0 of one image"
    require_tensor(features_BKHW, "floats", ("B", head.weight.shape[1], "H", "W"), asked_by, "features_BKHW")
    require_tensor(classes_BS, "integers", ("B", "S"), asked_by, "classes_BS", example)
    if not isinstance(normalization, Normalization):
        raise ValueError(
            f'{asked_by}: given normalization={normalization!r}, allowed: Normalization("max") or '
            'Normalization("percentile", 90) of ficklenet.folding.'
        )
    classes_BS = classes_BS.to(device=device, dtype=torch.int64)
    num_images = len(features_BKHW)
    require_one_per_image(num_images, asked_by, classes=classes_BS, **({} if keys is None else {"keys": keys}))
    if classes_BS.numel() and not -1 <= int(classes_BS.min()) <= int(classes_BS.max()) < head.num_classes:
        raise ValueError(
            f"localisation: classes from {int(classes_BS.min())} to {int(classes_BS.max())} given; "
            f"the classifier has classes 0 to {head.num_classes - 1}, and -1 marks an empty slot."
        )
    return classes_BS
