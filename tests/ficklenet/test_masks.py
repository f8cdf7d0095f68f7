"""The dropout masks: a pure function with published and committed test vectors."""

import hashlib

import pytest
import torch

from ficklenet.masks import (
    INFERENCE_STREAM,
    TRAINING_STREAM,
    dropout_masks,
    expected_mask,
    keep_threshold,
    mask_key,
    philox4x32,
    windows_inside,
)

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
    "10100011101100000000",
    "00000111100110100000",
    "00100010100100000000",
    "00100100100011011100",
    "11111111111111111111",
    "00110000110000000001",
    "00000101001101000010",
    "00000000001101000001",
    "00000000000101001001",
]
DIGEST_VECTOR = "f85678a7bb00088ff305ab52b6d87bb5909a2a90c2ce47c562cc64314cfbad20"


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
    masks = draw(keys=[key], samples=[sample], kernel_size=5, grid=grid, drop_rate=0.3)[0, 0]
    inside = windows_inside(5, grid)
    for offset in range(25):
        for position in range(12):
            counter = [position, offset // 8, sample, INFERENCE_STREAM]
            words = philox4x32(
                [torch.tensor(word) for word in counter],
                [torch.tensor(key & 0xFFFFFFFF), torch.tensor(key >> 32)],
            )
            word = int(words[offset % 8 // 2])
            draw_16 = word & 0xFFFF if offset % 2 == 0 else word >> 16
            kept = offset == 12 or draw_16 < round(0.7 * 65536)
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


@pytest.mark.parametrize("drop_rate", [0.0, 0.3, 0.9, 1.0])
def test_masks_keep_the_centre_and_the_stated_share_of_the_rest(drop_rate):
    masks = draw(samples=range(200), kernel_size=5, grid=(9, 11), drop_rate=drop_rate)[0].double()
    expected = expected_mask(5, (9, 11), drop_rate, dtype=torch.float64)
    assert bool((masks[:, 12] == 1).all())
    error = (masks.mean(0) - expected).abs().max()
    assert error <= 5.5 * (drop_rate * (1 - drop_rate) / 200) ** 0.5
    total_error = (masks.sum() - 200 * expected.sum()).abs()
    assert total_error <= 4 * (drop_rate * (1 - drop_rate) * masks.numel()) ** 0.5


def test_neighbouring_draws_are_uncorrelated():
    masks = draw(samples=range(100), kernel_size=5, grid=(12, 12), drop_rate=0.5)[0]
    inside = windows_inside(5, (12, 12)).all(0)  # positions where every window exists
    signs = masks[:, :, inside].double() * 2 - 1
    signs = signs[:, [offset for offset in range(25) if offset != 12]]
    for pairs in (signs[1:] * signs[:-1], signs[:, 1:] * signs[:, :-1], signs[:, :, 1:] * signs[:, :, :-1]):
        assert abs(float(pairs.mean())) < 4.5 / pairs.numel() ** 0.5


def test_even_kernel_and_impossible_drop_rate_are_refused():
    with pytest.raises(ValueError, match=r"kernel_size: 4 given.*odd"):
        draw(kernel_size=4)
    with pytest.raises(ValueError, match=r"drop_rate: 1.5 given.*from 0 to 1"):
        keep_threshold(1.5)
