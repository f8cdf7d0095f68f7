"""The compiled sampler: the reference's masks bit for bit, its maps to rounding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ficklenet.folding import Normalization
from ficklenet.localizer import fold_samples, sample_evidence
from ficklenet.masks import INFERENCE_STREAM, dropout_masks, mask_key

pytest.importorskip("numba", reason="the compiled sampler needs numba")

from ficklenet import compiled


def reference_masks(key, samples, kernel_size, grid, drop_rate):
    return dropout_masks(
        [key], samples, kernel_size=kernel_size, grid=grid, drop_rate=drop_rate, stream=INFERENCE_STREAM
    )[0]


@given(
    kernel_size=st.sampled_from([1, 3, 5, 9]),
    grid=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    drop_rate=st.sampled_from([0.0, 0.5, 0.7, 0.9, 1.0]),
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
    affinity = torch.randn(1, num_classes, 25, 15 * 13, generator=torch.Generator().manual_seed(0))
    key, grid = mask_key(0, "a"), (15, 13)
    dense = fold_samples(affinity, [key], range(30), grid=grid, drop_rate=0.7, normalization=normalization)
    maximum, total = compiled.fold_samples(
        affinity[0].numpy(), key, range(30), grid=grid, drop_rate=0.7, rank=normalization.rank(15 * 13)
    )
    assert np.abs(maximum - dense.maximum[0].numpy()).max() < 2e-6
    assert np.abs(total / 30 - dense.mean[0].numpy()).max() < 2e-6


def test_maps_without_positive_evidence_stay_zero():
    affinity = -np.ones((1, 9, 20), np.float32)
    for rank in (18, 20):
        maximum, total = compiled.fold_samples(affinity, 1, range(5), grid=(4, 5), drop_rate=0.5, rank=rank)
        assert not maximum.any() and not total.any()


@given(st.lists(st.floats(0, 2.0**90, width=32), min_size=1, max_size=60), st.data())
@settings(deadline=None, max_examples=80)
def test_value_of_rank_equals_sorting(values, data):
    values = np.array(values, np.float32) + np.float32(0)  # no negative zero, as after ReLU
    rank = data.draw(st.integers(1, len(values)))
    assert compiled.value_of_rank(values, rank) == np.sort(values)[rank - 1]
