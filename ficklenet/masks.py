"""The dropout masks, which say which features each window keeps: a pure function of (run seed, image id, sample).

Every window with centre ``u`` always keeps the feature at its centre. It keeps each other feature ``v = u + d`` with
probability ``1 - drop_rate`` (FickleNet, section 3.1; no rescaling). Each pair (u, d) corresponds to one pair (v, d),
so masks are drawn directly in the form in which they are used: ``M[d, v]`` says whether the window centred at ``v - d``
keeps the feature at ``v``.

The random words come from the counter-based generator Philox4x32-10 (Salmon et al., SC 2011). So all samplers (CPU,
compiled, GPU, reference) compute the same bits without sharing any state:

    key      the two 32-bit halves of ``mask_key(seed, image_id)``, low half first
    counter  (position v, call, sample n, stream)
    words    each call gives 4 words; word w of call c is random word number 4 * c + w of the position
    draws    a word without its lowest bit decides ten offsets at once (``ficklenet.patterns``): draw g decides the
             offsets number 10 * g to 10 * g + 9, counted row by row without the centre, which is always kept

A window of 9 x 9 has 80 offsets besides its centre: 8 draws, 2 calls of the generator.

Shape legend: B images, N samples, D offsets (kernel_size ** 2, row-major), V = H * W positions of the grid,
row-major; G draws of a position.
"""

import functools
import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ficklenet.patterns import NUM_PATTERNS, OFFSETS_PER_DRAW, draw_table

INFERENCE_STREAM = 0
TRAINING_STREAM = 1
WORDS_PER_CALL = 4

WORD = 0xFFFFFFFF
PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
PHILOX_ROUNDS = 10


def mask_key(seed: int, image_id: str) -> int:
    """The 64-bit Philox key of an image: blake2b of ``"{seed}\\0{image_id}"`` (UTF-8), read little-endian.

    Raises:
        ValueError: the seed is not an integer, or the id not a text; exchanged, they would give other masks.
    """
    if not isinstance(seed, int | np.integer) or not isinstance(image_id, str):
        raise ValueError(f"mask_key: given {seed!r} and {image_id!r}, allowed: an integer and a text, the image's id.")
    digest = hashlib.blake2b(f"{seed}\0{image_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def keep_rate(drop_rate: float) -> float:
    """The exact probability with which the masks keep an offset other than the centre.

    It is ``1 - drop_rate`` within 1e-7: the draws have a resolution of 2 ** -31. The expectation uses it as well.

    Raises:
        ValueError: ``drop_rate`` is not in [0, 1].
    """
    return draw_table(drop_rate).keep_rate


@functools.cache
@torch.inference_mode(False)  # the cached tensor must also be usable in training
def table_entries(drop_rate: float, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """The 1024 entries of ``draw_table`` on a device; do not change the tensor."""
    return torch.tensor(draw_table(drop_rate).entries, dtype=dtype, device=device)


def num_draws(kernel_size: int) -> int:
    """G, the number of draws for the offsets of one position."""
    return -(-(kernel_size**2 - 1) // OFFSETS_PER_DRAW)


def philox4x32(counter: Sequence[Tensor], key: Sequence[Tensor]) -> list[Tensor]:
    """Philox4x32-10, element by element.

    Args:
        counter: four int64 tensors that broadcast together, values in [0, 2**32).
        key: two such tensors.

    Returns:
        The four output words, int64 in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(PHILOX_ROUNDS):
        # The 64-bit products overflow into the sign bit; shifting and masking gives their unsigned halves.
        product0, product1 = c0 * PHILOX_MULTIPLIERS[0], c2 * PHILOX_MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & WORD) ^ c1 ^ k0,
            product1 & WORD,
            ((product0 >> 32) & WORD) ^ c3 ^ k1,
            product0 & WORD,
        )
        k0, k1 = (k0 + PHILOX_KEY_STEPS[0]) & WORD, (k1 + PHILOX_KEY_STEPS[1]) & WORD
    return [c0, c1, c2, c3]


@functools.cache
@torch.inference_mode(False)  # the cached tensor must also be usable in training
def windows_inside(kernel_size: int, grid: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """Whether the centre of the window with position v at offset d is on the grid: bool (D, V); do not change it."""
    radius = kernel_radius(kernel_size)
    height, width = grid
    offsets = torch.arange(-radius, radius + 1, device=device)
    centre_rows = torch.arange(height, device=device) - offsets[:, None]  # (s, H)
    centre_cols = torch.arange(width, device=device) - offsets[:, None]  # (s, W)
    rows_inside = (centre_rows >= 0) & (centre_rows < height)
    cols_inside = (centre_cols >= 0) & (centre_cols < width)
    inside = rows_inside[:, None, :, None] & cols_inside[None, :, None, :]  # (s, s, H, W)
    return inside.reshape(kernel_size**2, height * width)


def dropout_masks(
    keys: Sequence[int],
    samples: Sequence[int],
    *,
    kernel_size: int,
    grid: tuple[int, int],
    drop_rate: float,
    stream: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The dropout masks of some samples of some images.

    Args:
        keys: one ``mask_key`` per image.
        samples: sample numbers in [0, 2**32): the sample in inference, the epoch in training.
        kernel_size: s, odd.
        grid: (H, W) of the feature grid.
        drop_rate: p, the probability of dropping an offset other than the centre.
        stream: ``INFERENCE_STREAM`` or ``TRAINING_STREAM``.
        device: the device to draw on; the bits do not depend on it.

    Returns:
        bool (B, N, D, V): True where the window centred at ``v - d`` exists and keeps the feature at v.
    """
    patterns_BNGV = drawn_patterns(
        keys,
        samples,
        kernel_size=kernel_size,
        num_positions=grid[0] * grid[1],
        drop_rate=drop_rate,
        stream=stream,
        device=device,
    )
    bits = torch.arange(OFFSETS_PER_DRAW, device=device)[:, None]
    kept = (patterns_BNGV[:, :, :, None] >> bits & 1).bool().flatten(2, 3)  # the offsets without the centre, padded
    num_offsets = kernel_size**2
    before, after = kept[:, :, : num_offsets // 2], kept[:, :, num_offsets // 2 : num_offsets - 1]
    centre = kept.new_ones(len(kept), kept.shape[1], 1, kept.shape[3])
    return torch.cat([before, centre, after], dim=2) & windows_inside(kernel_size, grid, device)


def drawn_patterns(
    keys: Sequence[int],
    samples: Sequence[int],
    *,
    kernel_size: int,
    num_positions: int,
    drop_rate: float,
    stream: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Which offsets are kept, ten at a time; arguments as in ``dropout_masks``.

    Returns:
        int64 (B, N, G, V) in [0, 1024): bit i of draw g decides offset number 10 * g + i, without the centre.
    """
    # 1. One Philox call per (image, sample, call, position); the words of a call are consecutive.
    num_calls = -(-num_draws(kernel_size) // WORDS_PER_CALL)
    key_low = torch.tensor([key & WORD for key in keys], device=device)
    key_high = torch.tensor([key >> 32 for key in keys], device=device)
    words = philox4x32(
        (
            torch.arange(num_positions, device=device),
            torch.arange(num_calls, device=device)[:, None],
            torch.tensor(list(samples), dtype=torch.int64, device=device)[:, None, None],
            torch.tensor(stream, device=device),
        ),
        (key_low[:, None, None, None], key_high[:, None, None, None]),
    )
    draws_BNGV = torch.stack(words, dim=3).flatten(2, 3)[:, :, : num_draws(kernel_size)] >> 1

    # 2. One table look-up per draw.
    columns, heights = draws_BNGV % NUM_PATTERNS, draws_BNGV // NUM_PATTERNS
    entries = table_entries(drop_rate, torch.int64, device)[columns]
    return torch.where(heights < entries // NUM_PATTERNS, columns, entries % NUM_PATTERNS)


@functools.cache
@torch.inference_mode(False)  # the cached tensor must also be usable in training
def expected_mask(
    kernel_size: int,
    grid: tuple[int, int],
    drop_rate: float,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The expectation of the masks (D, V): 1 at the centre, ``keep_rate(drop_rate)`` elsewhere, 0 outside the grid.

    Do not change the tensor.
    """
    inside_DV = windows_inside(kernel_size, grid, device).to(dtype)
    keep_D1 = torch.full((kernel_size**2, 1), keep_rate(drop_rate), dtype=dtype, device=device)
    keep_D1[kernel_size**2 // 2] = 1.0
    return inside_DV * keep_D1


def kernel_radius(kernel_size: int) -> int:
    """r = (s - 1) / 2 of an odd kernel size s; an even or non-positive size is refused."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size: {kernel_size} given; a window has a centre, give an odd number such as 9.")
    return (kernel_size - 1) // 2
