# mypy: allow-untyped-defs
# (a kernel's arguments are typed by Triton)
"""The three kernels of the GPU sampler: draw, sum, and normalise and fold. ``ficklenet.triton_sampler`` runs them.

``ficklenet.triton_masks`` also uses the functions that draw.

Shape legend: B images, R rows (the wanted classes of all images, image by image), N samples, D offsets, V
positions, G draws of ten offsets, P parts of the samples that are folded separately.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ficklenet.gpu_kernels import sent
from ficklenet.masks import INFERENCE_STREAM, PHILOX_KEY_STEPS, PHILOX_MULTIPLIERS, PHILOX_ROUNDS, WORDS_PER_CALL
from ficklenet.patterns import NUM_PATTERNS, OFFSETS_PER_DRAW

_STREAM = tl.constexpr(INFERENCE_STREAM)
_WORDS_PER_CALL = tl.constexpr(WORDS_PER_CALL)
_NUM_PATTERNS, _OFFSETS_PER_DRAW = tl.constexpr(NUM_PATTERNS), tl.constexpr(OFFSETS_PER_DRAW)
_ROUNDS = tl.constexpr(PHILOX_ROUNDS)
_MULTIPLIER_0, _MULTIPLIER_1 = tl.constexpr(PHILOX_MULTIPLIERS[0]), tl.constexpr(PHILOX_MULTIPLIERS[1])
_KEY_STEP_0, _KEY_STEP_1 = tl.constexpr(PHILOX_KEY_STEPS[0]), tl.constexpr(PHILOX_KEY_STEPS[1])


def keys_on(device: torch.device, keys: Sequence[int]) -> Tensor:
    """The keys of images as int64 with the same bits, on a device."""
    signed_keys = [key - 2**64 if key >= 2**63 else key for key in keys]
    return sent(torch.tensor(signed_keys), device)


@triton.jit
def philox(c0, c1, c2, c3, key):
    """Philox4x32-10 of uint32 counters with an int64 key: four tensors of words (``ficklenet.masks``)."""
    key0, key1 = key.to(tl.uint32), (key >> 32).to(tl.uint32)
    for _ in tl.static_range(_ROUNDS):
        product0, product1 = c0.to(tl.uint64) * _MULTIPLIER_0, c2.to(tl.uint64) * _MULTIPLIER_1
        c0, c1 = (product1 >> 32).to(tl.uint32) ^ c1 ^ key0, product1.to(tl.uint32)
        c2, c3 = (product0 >> 32).to(tl.uint32) ^ c3 ^ key1, product0.to(tl.uint32)
        key0, key1 = key0 + _KEY_STEP_0, key1 + _KEY_STEP_1
    return c0, c1, c2, c3


@triton.jit
def look_up(word, table):
    """The patterns (int32) of random words (``ficklenet.patterns``)."""
    draw = (word >> 1).to(tl.int32)
    column = draw % _NUM_PATTERNS
    entry = tl.load(table + column)
    is_below = draw // _NUM_PATTERNS < entry // _NUM_PATTERNS
    return tl.where(is_below, column, entry % _NUM_PATTERNS)


@triton.jit(do_not_specialize=["first_sample", "num_samples"])
def draw_patterns(
    patterns_BNGV,
    keys_B,
    table,
    inside_GV,
    first_sample,
    num_samples,
    num_positions,
    NUM_DRAWS: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
):
    """Draws the patterns of one image, for GROUP samples at TILE positions. Blocks are (sample, position).

    Offsets whose window has its centre outside the grid are not kept: ``inside_GV`` has their bits as 0.
    """
    image = tl.program_id(2).to(tl.int64)  # as the addresses
    numbers = (tl.program_id(1) * GROUP + tl.arange(0, GROUP))[:, None]
    positions = (tl.program_id(0) * TILE + tl.arange(0, TILE))[None, :]
    is_position = positions < num_positions
    is_real = (numbers < num_samples) & is_position
    zero = tl.zeros((GROUP, TILE), tl.uint32)
    position_words = zero + positions.to(tl.uint32)
    sample_words = zero + (first_sample + numbers).to(tl.uint32)
    key = tl.load(keys_B + image)
    for call in tl.static_range((NUM_DRAWS + _WORDS_PER_CALL - 1) // _WORDS_PER_CALL):
        words = philox(position_words, zero + call, sample_words, zero + _STREAM, key)
        for w in tl.static_range(_WORDS_PER_CALL):
            if call * _WORDS_PER_CALL + w < NUM_DRAWS:
                draw_number = call * _WORDS_PER_CALL + w
                inside = tl.load(inside_GV + draw_number * num_positions + positions, mask=is_position, other=0)
                pattern = look_up(words[w], table).to(tl.int16) & inside
                row = (image * num_samples + numbers) * NUM_DRAWS + draw_number
                tl.store(patterns_BNGV + row * num_positions + positions, pattern, mask=is_real)


@triton.jit(do_not_specialize=["num_images", "num_samples"])
def sum_maps(
    maps_RNV,
    affinity_RDV,
    patterns_BNGV,
    first_row_B1,
    num_images,
    num_samples,
    num_positions,
    KERNEL_SIZE: tl.constexpr,
    NUM_DRAWS: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
):
    """Sums the maps of at most ROWS rows of one image, for GROUP samples at TILE positions. Blocks are (row, sample,
    position).

    A bit of a pattern becomes the float 2 or 0 without a conversion, because the bits of 2.0 are a single 1. So an
    addition is one multiply-add, and the sums are doubled (exactly) until the end.
    """
    image = (tl.program_id(2) % num_images).to(tl.int64)  # as the addresses
    first_row = tl.load(first_row_B1 + image) + tl.program_id(2) // num_images * ROWS
    last_row = tl.load(first_row_B1 + image + 1)
    if first_row >= last_row:
        return
    rows = (first_row + tl.arange(0, ROWS))[:, None, None]
    numbers = (tl.program_id(1) * GROUP + tl.arange(0, GROUP))[None, :, None]
    positions = (tl.program_id(0) * TILE + tl.arange(0, TILE))[None, None, :]
    num_offsets: tl.constexpr = KERNEL_SIZE * KERNEL_SIZE
    centre: tl.constexpr = num_offsets // 2
    is_row, is_position = rows < last_row, positions < num_positions
    is_drawn = (numbers < num_samples) & is_position
    patterns = patterns_BNGV + (image * num_samples + numbers) * NUM_DRAWS * num_positions + positions
    affinity = affinity_RDV + rows * num_offsets * num_positions + positions

    sums = tl.zeros((ROWS, GROUP, TILE), tl.float32)
    sums += 2 * tl.load(affinity + centre * num_positions, mask=is_row & is_position, other=0.0)
    for draw_number in range(NUM_DRAWS):
        pattern = tl.load(patterns + draw_number * num_positions, mask=is_drawn, other=0).to(tl.int32)
        for bit in tl.static_range(_OFFSETS_PER_DRAW):
            other = draw_number * _OFFSETS_PER_DRAW + bit  # the number without the centre
            offset = other + (other >= centre)
            is_seen = is_row & is_position & (offset < num_offsets)
            values = tl.load(affinity + offset * num_positions, mask=is_seen, other=0.0)
            two_or_zero = ((pattern << (30 - bit)) & 0x40000000).to(tl.float32, bitcast=True)
            sums += two_or_zero * values

    maps = maps_RNV + (rows * num_samples + numbers) * num_positions + positions
    positive = tl.where(sums < 0, 0.0, 0.5 * sums)  # a ReLU that keeps NaN
    tl.store(maps, positive, mask=is_row & is_drawn)


@triton.jit(do_not_specialize=["rank", "vote_threshold", "num_samples"])
def normalize_and_fold(
    maximum_RPV,
    total_RPV,
    votes_RPV,
    maps_RNV,
    rank,
    vote_threshold,
    num_samples,
    num_positions,
    IS_VOTING: tl.constexpr,
    SAMPLES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Folds SAMPLES samples of one row, after each map is divided by its value of a given rank.

    If this value is 0, a map is divided by its largest value, and if that is 0 too, by 1. Non-negative floats have the
    same order as their bit patterns, so the bits of the value are found from the highest to the lowest: it is the
    largest pattern with fewer than ``rank`` values below it. This is exact and does not sort.
    """
    part, row = tl.program_id(0), tl.program_id(1).to(tl.int64)  # as the addresses
    positions = tl.arange(0, BLOCK)
    is_real = positions < num_positions
    maximum = tl.zeros((BLOCK,), tl.float32)
    total = tl.zeros((BLOCK,), tl.float64)
    votes = tl.zeros((BLOCK,), tl.int32)
    for sample in range(part * SAMPLES, tl.minimum((part + 1) * SAMPLES, num_samples)):
        values = tl.load(maps_RNV + (row * num_samples + sample) * num_positions + positions, mask=is_real, other=0.0)
        bits = values.to(tl.int32, bitcast=True)
        found = tl.max(bits, axis=0)
        if rank < num_positions:
            answer = found * 0
            for step in range(31):  # the bits below the sign
                trial = answer | (1 << (30 - step))
                num_below = tl.sum((is_real & (bits < trial)).to(tl.int32), axis=0)
                answer = tl.where(num_below < rank, trial, answer)
            found = tl.where(answer > 0, answer, found)
        divisor = found.to(tl.float32, bitcast=True)
        scaled = values / tl.where(found > 0, divisor, 1.0)
        scaled = tl.where(scaled > 1.0, 1.0, scaled)  # keeps NaN
        maximum = tl.where(scaled > maximum, scaled, maximum)
        total += scaled.to(tl.float64)
        if IS_VOTING:
            votes += (scaled > vote_threshold).to(tl.int32)
    place = (row * tl.num_programs(0) + part) * num_positions + positions
    tl.store(maximum_RPV + place, maximum, mask=is_real)
    tl.store(total_RPV + place, total, mask=is_real)
    if IS_VOTING:
        tl.store(votes_RPV + place, votes, mask=is_real)
