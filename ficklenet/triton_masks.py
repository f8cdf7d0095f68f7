# mypy: allow-untyped-defs
# (a kernel's arguments are typed by Triton)
"""The masks of a training step on a GPU, in one kernel: it draws, looks up, unpacks and stores each decision once.

The masks are those of ``ficklenet.masks``, bit for bit; plain torch needs about a hundred small kernels for them. This
module needs Triton; see ``ficklenet.gpu_kernels``.

Shape legend: B images, D offsets, P offsets padded to a multiple of 8, V positions.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ficklenet.masks import TRAINING_STREAM, WORDS_PER_CALL, num_draws, table_entries
from ficklenet.patterns import OFFSETS_PER_DRAW
from ficklenet.triton_kernels import keys_on, look_up, philox

MULTIPLE = 8  # of the padded offsets
TILE = 128  # positions of a program
_STREAM = tl.constexpr(TRAINING_STREAM)
_WORDS_PER_CALL, _OFFSETS_PER_DRAW = tl.constexpr(WORDS_PER_CALL), tl.constexpr(OFFSETS_PER_DRAW)


def training_masks(
    keys: Sequence[int],
    epoch: int,
    *,
    kernel_size: int,
    grid: tuple[int, int],
    drop_rate: float,
    device: torch.device,
) -> Tensor:
    """uint8 masks (B, P, V), 0 or 1; arguments as in ``ficklenet.training_masks``. The rows after D are zeros.

    Offsets are neighbours in memory, padded so that the head's products read aligned rows.
    """
    num_offsets, num_positions = kernel_size**2, grid[0] * grid[1]
    num_padded = num_offsets + -num_offsets % MULTIPLE
    masks_BVP = torch.zeros(len(keys), num_positions, num_padded, dtype=torch.uint8, device=device)
    with torch.cuda.device_of(masks_BVP):  # Triton launches on the current GPU
        draw_masks[(triton.cdiv(num_positions, TILE), len(keys))](
            masks_BVP,
            keys_on(device, keys),
            table_entries(drop_rate, torch.int32, device),
            epoch,
            *grid,
            KERNEL_SIZE=kernel_size,
            PADDED=num_padded,
            NUM_CALLS=triton.cdiv(num_draws(kernel_size), WORDS_PER_CALL),
            TILE=TILE,
        )
    return masks_BVP.mT


@triton.jit(do_not_specialize=["sample", "height", "width"])
def draw_masks(
    masks_BVP,
    keys_B,
    table,
    sample,
    height,
    width,
    KERNEL_SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    NUM_CALLS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Stores 1 where one sample of an image keeps an offset, at TILE positions; the rest must be 0 before."""
    image = tl.program_id(1).to(tl.int64)  # as the addresses
    positions = tl.program_id(0) * TILE + tl.arange(0, TILE)
    is_position = positions < height * width
    masks = masks_BVP + (image * height * width + positions) * PADDED
    num_offsets: tl.constexpr = KERNEL_SIZE * KERNEL_SIZE
    centre: tl.constexpr = num_offsets // 2
    radius: tl.constexpr = KERNEL_SIZE // 2
    tl.store(masks + centre, 1, mask=is_position)

    bits = tl.arange(0, 16)[None, :]  # a power of two that holds the bits of a pattern
    zero = tl.zeros((TILE,), tl.uint32)
    sample_words = zero + sample.to(tl.uint32)
    key = tl.load(keys_B + image)
    for call in range(NUM_CALLS):
        words = philox(positions.to(tl.uint32), zero + call, sample_words, zero + _STREAM, key)
        for w in tl.static_range(_WORDS_PER_CALL):
            pattern = look_up(words[w], table)[:, None]
            other = (call * _WORDS_PER_CALL + w) * _OFFSETS_PER_DRAW + bits  # the number without the centre
            offset = other + (other >= centre)
            centre_rows = (positions // width)[:, None] - (offset // KERNEL_SIZE - radius)
            centre_cols = (positions % width)[:, None] - (offset % KERNEL_SIZE - radius)
            is_inside = (centre_rows >= 0) & (centre_rows < height) & (centre_cols >= 0) & (centre_cols < width)
            is_real = is_position[:, None] & (bits < _OFFSETS_PER_DRAW) & (offset < num_offsets)
            tl.store(masks[:, None] + offset, 1, mask=is_real & is_inside & ((pattern >> bits) & 1 != 0))
