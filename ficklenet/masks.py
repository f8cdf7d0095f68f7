"""Which features each window keeps: the dropout masks, as a pure function of (run seed, image id, sample).

Every window centre ``u`` keeps its own centre feature always, and each other feature ``v = u + d`` of the
window with probability ``1 - drop_rate`` (FickleNet, section 3.1; no rescaling). The pair (u, d) maps one to
one to (v, d), so masks are drawn directly where they are used: ``M[d, v]`` says whether the window centred at
``v - d`` keeps the feature at ``v``.

The draws come from the counter-based generator Philox4x32-10 (Salmon et al., SC 2011), so that every path
(CPU, compiled, GPU, reference) computes the same bits without sharing any state:

    key      the two 32-bit halves of ``mask_key(seed, image_id)``, low half first
    counter  (position v, block of offsets, sample n, stream)
    draws    each of the 4 output words gives two: its low 16 bits, then its high 16 bits; a block thus
    decides 8 offsets kept     where draw < round((1 - drop_rate) * 65536)

Shape legend: B images, N samples, D offsets (kernel_size ** 2, row-major), V = H * W positions of the grid,
row-major.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

INFERENCE_STREAM = 0
TRAINING_STREAM = 1
OFFSETS_PER_BLOCK = 8  # 4 words of 32 bits, two 16-bit draws each

WORD = 0xFFFFFFFF
PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
PHILOX_ROUNDS = 10


def mask_key(seed: int, image_id: str) -> int:
    """The 64-bit Philox key of an image: blake2b of ``"{seed}\\0{image_id}"`` (UTF-8), read little-endian."""
    digest = hashlib.blake2b(f"{seed}\0{image_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def keep_threshold(drop_rate: float) -> int:
    """The number of the 65,536 possible draws that keep an offset: 65536 at drop rate 0, 0 at drop rate 1."""
    if not 0.0 <= drop_rate <= 1.0:
        raise ValueError(f"drop_rate: {drop_rate} given; it is a probability, give a number from 0 to 1.")
    return round((1.0 - drop_rate) * 65536)


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
        # The 64-bit products wrap into the sign bit; shifting and masking recovers their unsigned halves.
        product0, product1 = c0 * PHILOX_MULTIPLIERS[0], c2 * PHILOX_MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & WORD) ^ c1 ^ k0,
            product1 & WORD,
            ((product0 >> 32) & WORD) ^ c3 ^ k1,
            product0 & WORD,
        )
        k0, k1 = (k0 + PHILOX_KEY_STEPS[0]) & WORD, (k1 + PHILOX_KEY_STEPS[1]) & WORD
    return [c0, c1, c2, c3]


def windows_inside(kernel_size: int, grid: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """Whether the window that sees position v at offset d is centred on the grid: bool (D, V)."""
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
        drop_rate: probability p of dropping an offset other than the centre.
        stream: ``INFERENCE_STREAM`` or ``TRAINING_STREAM``.
        device: where to draw; the bits do not depend on it.

    Returns:
        bool (B, N, D, V): True where the window centred at ``v - d`` exists and keeps the feature at v.
    """
    num_offsets, num_positions = kernel_size**2, grid[0] * grid[1]
    num_blocks = -(-num_offsets // OFFSETS_PER_BLOCK)
    inside_DV = windows_inside(kernel_size, grid, device)

    # 1. One Philox call per (image, sample, block of offsets, position).
    key_low = torch.tensor([key & WORD for key in keys], device=device)
    key_high = torch.tensor([key >> 32 for key in keys], device=device)
    words = philox4x32(
        (
            torch.arange(num_positions, device=device),
            torch.arange(num_blocks, device=device)[:, None],
            torch.tensor(list(samples), dtype=torch.int64, device=device)[:, None, None],
            torch.tensor(stream, device=device),
        ),
        (key_low[:, None, None, None], key_high[:, None, None, None]),
    )

    # 2. Two 16-bit draws per word, low half first, in the order of the offsets.
    halves = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    draws = torch.stack(halves, dim=3).flatten(2, 3)[:, :, :num_offsets]

    # 3. Compare; the centre is always kept, windows off the grid do not exist.
    kept_BNDV = draws < keep_threshold(drop_rate)
    kept_BNDV[:, :, num_offsets // 2] = True
    return kept_BNDV & inside_DV


def expected_mask(
    kernel_size: int,
    grid: tuple[int, int],
    drop_rate: float,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The masks' expectation (D, V): 1 at the centre, 1 - drop_rate elsewhere, 0 off the grid."""
    keep_threshold(drop_rate)  # refuses what is no probability
    inside_DV = windows_inside(kernel_size, grid, device).to(dtype)
    keep_D1 = torch.full((kernel_size**2, 1), 1.0 - drop_rate, dtype=dtype, device=device)
    keep_D1[kernel_size**2 // 2] = 1.0
    return inside_DV * keep_D1


def kernel_radius(kernel_size: int) -> int:
    """r = (s - 1) / 2 of an odd kernel size s; an even or non-positive size is refused."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size: {kernel_size} given; a window has a centre, give an odd number such as 9.")
    return (kernel_size - 1) // 2
