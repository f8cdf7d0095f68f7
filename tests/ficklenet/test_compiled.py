"""The compiled sampler: the reference's masks bit for bit, its maps to rounding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ficklenet.dense_sampler import sample_evidence
from ficklenet.folding import Normalization
from ficklenet.masks import INFERENCE_STREAM, dropout_masks, mask_key

pytest.importorskip("numba", reason="the compiled sampler needs numba")

from ficklenet import compiled, dense_sampler
from ficklenet.compiled_fold import REACH, pattern_of_rank


def reference_masks(key, samples, kernel_size, grid, drop_rate):
    return dropout_masks(
        [key], samples, kernel_size=kernel_size, grid=grid, drop_rate=drop_rate, stream=INFERENCE_STREAM
    )[0]


@given(
    kernel_size=st.sampled_from([1, 3, 5, 9]),
    grid=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    drop_rate=st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]) | st.floats(0, 1),
    key=st.integers(0, 2**64 - 1),
    start=st.sampled_from([0, 7, 2**31]),
)
@settings(deadline=None, max_examples=60)
def test_compiled_masks_equal_the_reference_bit_for_bit(kernel_size, grid, drop_rate, key, start):
    """An affinity of V at one offset and 0 elsewhere makes that offset's mask visible in the map."""
    num_offsets, num_positions = kernel_size**2, grid[0] * grid[1]
    affinity = np.zeros((num_offsets, num_offsets, num_positions), np.float32)
    affinity[range(num_offsets), range(num_offsets)] = num_positions
    samples = range(start, start + 3)
    maps_DNV = compiled.sample_maps(affinity, key, samples, grid=grid, drop_rate=drop_rate)
    masks_NDV = reference_masks(key, samples, kernel_size, grid, drop_rate).numpy()
    assert np.array_equal(maps_DNV > 0.5, masks_NDV.transpose(1, 0, 2))


@pytest.mark.parametrize("drop_rate", [0.5, 0.9])
def test_compiled_samples_equal_the_dense_path_at_paper_size(drop_rate):
    affinity = torch.randn(1, 2, 81, 1681, generator=torch.Generator().manual_seed(0))
    key, grid = mask_key(0, "2007_000032"), (41, 41)
    masks = reference_masks(key, range(4), 9, grid, drop_rate)
    dense = sample_evidence(affinity, masks[None], grid).relu()[:, 0].flatten(2).numpy()  # (N, S, V)
    maps = compiled.sample_maps(affinity[0].numpy(), key, range(4), grid=grid, drop_rate=drop_rate)
    assert np.abs(maps.transpose(1, 0, 2) - dense).max() < 1e-6 * dense.max()


@pytest.mark.parametrize("normalization", [Normalization("max"), Normalization("percentile", 90.0)])
@pytest.mark.parametrize("num_classes", [1, 3])
def test_compiled_fold_equals_the_dense_fold(normalization, num_classes):
    affinity = torch.randn(2, num_classes, 25, 15 * 13, generator=torch.Generator().manual_seed(0))
    keys = [mask_key(0, "a"), mask_key(0, "b")]
    settings = {"grid": (15, 13), "drop_rate": 0.7, "normalization": normalization, "vote_threshold": 0.35}
    dense, found = (path.fold_samples(affinity, keys, range(30), **settings) for path in (dense_sampler, compiled))
    assert found.count == 30 and found.maximum.shape == (2, num_classes, 15, 13)
    assert (found.maximum - dense.maximum).abs().max() < 2e-6
    assert (found.mean - dense.mean).abs().max() < 2e-6
    assert found.votes.dtype == torch.int32 and found.votes.any()
    assert ((found.votes - dense.votes).abs() > 0).float().mean() < 1e-3  # a value as near theta as rounding goes
    without = compiled.fold_samples(affinity, keys, range(30), **settings | {"vote_threshold": None})
    assert without.votes is None and torch.equal(without.maximum, found.maximum)


def fold(affinity_SDV, num_samples, normalization):
    """The compiled fold of one image on a grid of 4 x 5."""
    affinity_1SDV = torch.from_numpy(affinity_SDV)[None]
    return compiled.fold_samples(
        affinity_1SDV, [1], range(num_samples), grid=(4, 5), drop_rate=0.5, normalization=normalization
    )


NORMALIZATIONS = [Normalization("percentile", 90.0), Normalization("max")]


def test_maps_without_positive_evidence_stay_zero():
    for normalization in NORMALIZATIONS:
        folded = fold(-np.ones((1, 9, 20), np.float32), 5, normalization)
        assert not folded.maximum.any() and not folded.total.any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_evidence_that_is_no_number_shows_in_the_fold(value, normalization):
    affinity = np.ones((2, 9, 20), np.float32)
    affinity[1, 0, 7] = value
    total_SHW = fold(affinity, 40, normalization).total[0]
    assert total_SHW[1, 1, 2].isnan() and total_SHW[0].isfinite().all()


@given(
    num_classes=st.integers(1, 12),
    num_samples=st.integers(1, 19),
    kernel_size=st.sampled_from([1, 3, 9]),
    grid=st.sampled_from([(1, 1), (7, 9), (8, 8), (5, 13)]),
    drop_rate=st.sampled_from([0.0, 0.9, 1.0]),
)
@settings(deadline=None, max_examples=40)
def test_maps_are_the_kept_affinities_summed_in_order_to_the_bit(
    num_classes, num_samples, kernel_size, grid, drop_rate
):
    """The centre first, then every offset as it comes, for classes and samples below, at and above a group's size
    and positions around a tile's: stored bytes rest on it."""
    num_offsets, num_positions = kernel_size**2, grid[0] * grid[1]
    shape = (num_classes, num_offsets, num_positions)
    affinity_SDV = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    maps_SNV = compiled.sample_maps(affinity_SDV, 5, range(num_samples), grid=grid, drop_rate=drop_rate)
    masks_NDV = reference_masks(5, range(num_samples), kernel_size, grid, drop_rate).numpy()
    parts_SDV = affinity_SDV * (np.float32(1) / np.float32(num_positions))
    centre = num_offsets // 2
    sums_SNV = np.repeat(parts_SDV[:, centre, None], num_samples, axis=1)
    for d in (d for d in range(num_offsets) if d != centre):
        sums_SNV += parts_SDV[:, None, d] * masks_NDV[None, :, d]
    expected_SNV = np.maximum(sums_SNV, np.float32(0)) + np.float32(0)  # no zero is negative
    assert maps_SNV.tobytes() == expected_SNV.tobytes()


@given(
    values=st.lists(st.floats(0, width=32, allow_nan=False), min_size=1, max_size=60)
    | st.lists(st.sampled_from([0.0, 1.0, 1.0000001]), min_size=1, max_size=60),
    guess=st.none() | st.integers(0, 2**31 - 1),
    data=st.data(),
)
@settings(deadline=None, max_examples=200)
def test_pattern_of_rank_equals_sorting_from_any_guess(values, guess, data):
    """Without a drawn guess it is the answer or one reach beside it, as from one sample to the next."""
    values = np.array(values, np.float32) + np.float32(0)  # no negative zero, as after ReLU
    rank = data.draw(st.integers(1, len(values)))
    answer = int(np.sort(values)[rank - 1 : rank].view(np.int32)[0])
    if guess is None:
        guess = max(0, answer + data.draw(st.sampled_from([-REACH, -REACH + 1, 0, REACH - 1, REACH])))
    assert pattern_of_rank(values.view(np.int32), rank, guess) == answer
