"""The dropout masks: a pure function with published and committed test vectors, and their statistics.

The statistics are of fixed seeds, so that a test fails always or never.
"""

import hashlib

import pytest
import torch

from ficklenet.masks import (
    INFERENCE_STREAM,
    TRAINING_STREAM,
    dropout_masks,
    expected_mask,
    keep_rate,
    mask_key,
    philox4x32,
    windows_inside,
)
from ficklenet.patterns import draw_table

# Random123's known answers (kat_vectors, philox4x32 with 10 rounds): counter, key -> output.
RANDOM123_VECTORS = [
    ([0x00000000] * 4, [0x00000000] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]

KEY_VECTOR = 0x30ED7F5165E804AD
MASK_VECTOR = [  # rows: offsets; columns: positions
    "11010000100111000000",
    "11110110110110000000",
    "01011010100110000000",
    "01110010001110010100",
    "11111111111111111111",
    "01111010100101100010",
    "00000100000010010110",
    "00000100000110111111",
    "00000010110011101001",
]
DIGEST_VECTOR = "e2d72a8fd25d6f6f6fd357517acf13679aaf3a6c5b0917bea12b8c74baa13b89"


KEYS = [mask_key(0, "a")]


def draw(keys=KEYS, samples=(0,), kernel_size=3, grid=(4, 5), drop_rate=0.5, stream=INFERENCE_STREAM):
    return dropout_masks(keys, samples, kernel_size=kernel_size, grid=grid, drop_rate=drop_rate, stream=stream)


@pytest.mark.parametrize(("counter", "key", "output"), RANDOM123_VECTORS)
def test_philox_gives_the_published_known_answers(counter, key, output):
    words = philox4x32([torch.tensor([word]) for word in counter], [torch.tensor([word]) for word in key])
    assert [int(word) for word in words] == output


def test_mask_keys_match_committed_values():
    assert mask_key(0, "2007_000032") == KEY_VECTOR
    assert mask_key(1, "2007_000032") != mask_key(0, "2007_000032")


def test_masks_match_committed_bits():
    masks = draw(keys=[mask_key(0, "2007_000032")])[0, 0]
    assert ["".join(map(str, row)) for row in masks.int().tolist()] == MASK_VECTOR


def test_paper_size_masks_match_a_committed_digest():
    masks = draw(
        keys=[mask_key(7, "a"), mask_key(7, "b")],
        samples=[0, 199],
        kernel_size=9,
        grid=(41, 41),
        drop_rate=0.9,
    )
    assert hashlib.sha256(masks.byte().numpy().tobytes()).hexdigest() == DIGEST_VECTOR


def test_draws_follow_the_documented_layout():
    key, grid, sample = mask_key(3, "layout"), (3, 4), 6
    masks = draw(keys=[key], samples=[sample], kernel_size=7, grid=grid, drop_rate=0.3)[0, 0]
    inside, entries = windows_inside(7, grid), draw_table(0.3).entries
    for offset in range(49):
        other = offset if offset < 24 else offset - 1  # counted without the centre
        for position in range(12):
            draw_number = other // 10
            words = philox4x32(
                [torch.tensor(word) for word in (position, draw_number // 4, sample, INFERENCE_STREAM)],
                [torch.tensor(key & 0xFFFFFFFF), torch.tensor(key >> 32)],
            )
            number = int(words[draw_number % 4]) >> 1
            column, height = number & 1023, number >> 10
            pattern = column if height < entries[column] >> 10 else entries[column] & 1023
            kept = offset == 24 or bool(pattern >> other % 10 & 1)
            assert bool(masks[offset, position]) == (kept and bool(inside[offset, position]))


def test_windows_inside_matches_a_plain_loop():
    height, width, size = 3, 5, 5
    inside = windows_inside(size, (height, width)).view(size, size, height, width)
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            for row in range(height):
                for col in range(width):
                    expected = 0 <= row - dy < height and 0 <= col - dx < width
                    assert bool(inside[dy + 2, dx + 2, row, col]) == expected


def test_masks_do_not_depend_on_what_is_drawn_with_them():
    keys, samples = [mask_key(0, name) for name in "abc"], range(5)
    together = draw(keys=keys, samples=samples)
    assert torch.equal(together[1, 3], draw(keys=[keys[1]], samples=[3])[0, 0])


def test_images_samples_and_streams_have_different_masks():
    base = draw(grid=(20, 20))
    assert not torch.equal(base, draw(keys=[mask_key(0, "b")], grid=(20, 20)))
    assert not torch.equal(base, draw(samples=[1], grid=(20, 20)))
    assert not torch.equal(base, draw(stream=TRAINING_STREAM, grid=(20, 20)))


def test_masks_do_not_change_when_the_process_first_drew_in_inference_mode():
    windows_inside.cache_clear()
    with torch.inference_mode():
        draw(grid=(6, 3))
    weight = torch.ones(3 * 6, requires_grad=True)
    (weight * expected_mask(3, (6, 3), 0.5)).sum().backward()  # what is kept between calls is no inference tensor
    assert not windows_inside(3, (6, 3)).is_inference() and weight.grad is not None


@pytest.mark.parametrize("drop_rate", [0.0, 0.3, 0.9, 1.0])
def test_masks_keep_the_centre_and_the_stated_share_of_the_rest(drop_rate):
    masks = draw(samples=range(200), kernel_size=5, grid=(9, 11), drop_rate=drop_rate)[0].double()
    expected = expected_mask(5, (9, 11), drop_rate, dtype=torch.float64)
    assert bool((masks[:, 12] == 1).all())
    error = (masks.mean(0) - expected).abs().max()
    assert error <= 5.5 * (drop_rate * (1 - drop_rate) / 200) ** 0.5
    total_error = (masks.sum() - 200 * expected.sum()).abs()
    assert total_error <= 4 * (drop_rate * (1 - drop_rate) * masks.numel()) ** 0.5


def windows_of_paper_size(drop_rate, num_samples, grid=(24, 24), **settings):
    """The 80 decisions of every window that lies on the grid, float64 (N, 80, V)."""
    masks = draw(samples=range(num_samples), kernel_size=9, grid=grid, drop_rate=drop_rate, **settings)[0]
    masks = masks[:, :, windows_inside(9, grid).all(0)].double()
    return torch.cat([masks[:, :40], masks[:, 41:]], dim=1)


@pytest.mark.parametrize("drop_rate", [0.1, 0.5, 0.9])
def test_every_offset_and_every_position_is_kept_at_the_rate_of_the_expectation(drop_rate):
    kept = windows_of_paper_size(drop_rate, 60)
    rate = keep_rate(drop_rate)
    for dims in [(0, 2), (0, 1), (1, 2)]:  # by offset, by position, by sample
        shares = kept.mean(dims)
        deviation = (rate * (1 - rate) * len(shares) / kept.numel()) ** 0.5
        chi_square = (((shares - rate) / deviation) ** 2).sum()
        assert abs(chi_square - len(shares)) < 4 * (2 * len(shares)) ** 0.5, dims


@pytest.mark.parametrize("drop_rate", [0.1, 0.5, 0.9])
def test_the_number_of_kept_offsets_of_a_window_is_binomial(drop_rate):
    """What is not independent within a window, whatever the offsets, spreads this number another way."""
    counts = windows_of_paper_size(drop_rate, 60).sum(1).flatten()
    rate = torch.tensor(keep_rate(drop_rate), dtype=torch.float64)
    binomial = torch.distributions.Binomial(80, rate)
    expected = binomial.log_prob(torch.arange(81, dtype=torch.float64)).exp() * len(counts)
    seen = torch.bincount(counts.long(), minlength=81).double()
    likely = expected >= 10
    expected = torch.cat([expected[likely], expected[~likely].sum()[None]])
    seen = torch.cat([seen[likely], seen[~likely].sum()[None]])
    degrees = len(seen) - 1
    assert ((seen - expected) ** 2 / expected).sum() < degrees + 4 * (2 * degrees) ** 0.5


@pytest.mark.parametrize("drop_rate", [0.5, 0.9])
def test_all_pairs_of_offsets_are_uncorrelated(drop_rate):
    """Within one draw of ten and across draws: the correlations are as large as chance makes them."""
    kept = windows_of_paper_size(drop_rate, 60).permute(1, 0, 2).flatten(1)
    correlations = torch.corrcoef(kept)[torch.triu(torch.ones(80, 80, dtype=torch.bool), diagonal=1)]
    scaled = correlations * kept.shape[1] ** 0.5  # standard normal where there is no correlation
    assert scaled.abs().max() < 4.5
    assert abs((scaled**2).mean() - 1) < 4 * (2 / len(scaled)) ** 0.5


@pytest.mark.parametrize("drop_rate", [0.5, 0.9])
def test_neighbouring_positions_samples_streams_images_and_seeds_are_uncorrelated(drop_rate):
    rate = keep_rate(drop_rate)

    def draws(**settings):
        return (windows_of_paper_size(drop_rate, 40, **settings) - rate) / (rate * (1 - rate)) ** 0.5

    base = draws()
    pairs = {
        "positions": base[:, :, 1:] * base[:, :, :-1],
        "samples": base[1:] * base[:-1],
        "streams": base * draws(stream=TRAINING_STREAM),
        "images": base * draws(keys=[mask_key(0, "b")]),
        "seeds": base * draws(keys=[mask_key(1, "a")]),
    }
    for name, products in pairs.items():
        assert abs(float(products.mean())) < 4 / products.numel() ** 0.5, name


def test_even_kernel_and_impossible_drop_rate_are_refused():
    with pytest.raises(ValueError, match=r"kernel_size: 4 given.*odd"):
        draw(kernel_size=4)
    with pytest.raises(ValueError, match=r"drop_rate: 1.5 given.*from 0 to 1"):
        keep_rate(1.5)
