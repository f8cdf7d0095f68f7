# mypy: allow-untyped-defs
# (a kernel's arguments are typed by Triton)
"""Region growing on a GPU in one kernel, so that the training step does not wait for the device.

This module needs Triton; see ``ficklenet.gpu_kernels``.

Shape legend: B images, H W feature grid.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

STEPS_BETWEEN_COUNTS = tl.constexpr(8)
CELLS_PER_WARP = 256


def connected(labels_BHW: Tensor, sources_BHW: Tensor) -> Tensor:
    """As ``ficklenet.growing.connected``: the cells connected to a source through cells of the same label."""
    height, width = labels_BHW.shape[1:]
    reached_BHW = sources_BHW.to(torch.int32)
    block = triton.next_power_of_2(height * width)
    with torch.cuda.device_of(labels_BHW):  # Triton launches on the current GPU
        spread[(len(labels_BHW),)](
            reached_BHW,
            labels_BHW.contiguous(),
            height,
            width,
            BLOCK=block,
            num_warps=min(32, max(4, block // CELLS_PER_WARP)),
        )
    return reached_BHW > 0


@triton.jit(do_not_specialize=["height", "width"])
def spread(reached_BHW, labels_BHW, height, width, BLOCK: tl.constexpr):
    """Spreads 1 over 8-connected cells with the same label until nothing changes; a program for each image.

    Cells only change from 0 to 1, so it does not matter whether a program reads a neighbour before or after its change.
    """
    first = tl.program_id(0).to(tl.int64) * height * width  # as the addresses
    cells = tl.arange(0, BLOCK)
    rows, cols, is_cell = cells // width, cells % width, cells < height * width
    reached, labels = reached_BHW + first + cells, labels_BHW + first + cells
    own_label = tl.load(labels, mask=is_cell, other=0)
    open_sides = tl.zeros((BLOCK,), tl.int32)  # bit n: neighbour n has the same label
    for n in tl.static_range(9):
        row, col = rows + n // 3 - 1, cols + n % 3 - 1
        is_inside = is_cell & (row >= 0) & (row < height) & (col >= 0) & (col < width)
        label = tl.load(labels + (n // 3 - 1) * width + n % 3 - 1, mask=is_inside, other=0)
        open_sides |= (is_inside & (label == own_label)).to(tl.int32) << n

    is_reached = tl.load(reached, mask=is_cell, other=0)
    num_reached = tl.sum(is_reached)
    num_before = num_reached - 1
    while num_reached > num_before:
        num_before = num_reached
        for _ in range(STEPS_BETWEEN_COUNTS):
            for n in tl.static_range(9):
                neighbours = reached + (n // 3 - 1) * width + n % 3 - 1
                is_reached |= tl.load(neighbours, mask=(open_sides >> n) & 1 != 0, other=0, volatile=True)
            tl.store(reached, is_reached, mask=is_cell)
            tl.debug_barrier()  # the next step of every thread of the program sees the stored cells
        num_reached = tl.sum(is_reached)
