"""The GPU sampler under Triton's interpreter, on a CPU: the reference's masks bit for bit, its maps to rounding.

Whether a GPU's compiler takes the kernels is asked too; that needs no GPU.
"""

import pytest
import torch

from ficklenet import localizer
from ficklenet.localizer import samplers_for

pytest.importorskip("triton", reason="the GPU sampler needs Triton")

IMPORTS = """
import torch
from ficklenet import triton_sampler
from ficklenet.folding import Normalization
from ficklenet.head import StochasticHead
from ficklenet.dense_sampler import fold_samples
from ficklenet.localizer import localize
from ficklenet.masks import INFERENCE_STREAM, dropout_masks, mask_key

KEYS = [mask_key(0, "a"), 2**64 - 5, mask_key(1, "b")]
torch.manual_seed(0)
"""


def test_masks_equal_the_reference_bit_for_bit(run_interpreted):
    """An affinity of 1 at one offset and 0 elsewhere makes that offset's mask visible in the map."""
    run_interpreted(
        IMPORTS
        + """
cases = [(5, (7, 9), 0.7, 0), (5, (7, 9), 0.0, 2**31), (3, (12, 13), 0.5, 2**32 - 3), (1, (2, 3), 1.0, 0)]
for kernel_size, grid, drop_rate, start in cases:
    num_offsets, num_positions, samples = kernel_size**2, grid[0] * grid[1], range(start, start + 3)
    affinity = torch.eye(num_offsets)[:, :, None].repeat(1, 1, num_positions)
    rows = torch.ones(num_offsets, dtype=torch.int64)  # all of the second image
    maps = triton_sampler.sample_maps(affinity, rows, KEYS, samples, grid=grid, drop_rate=drop_rate)
    masks = dropout_masks(
        KEYS[1:2], samples, kernel_size=kernel_size, grid=grid, drop_rate=drop_rate, stream=INFERENCE_STREAM
    )[0]
    assert torch.equal(maps == 1, masks.permute(1, 0, 2)), (kernel_size, grid, drop_rate, start)
    assert ((maps == 0) | (maps == 1)).all()
"""
    )


def test_folds_equal_the_dense_fold_with_unequal_rows_per_image(run_interpreted):
    """Five rows of the first image are more than one program takes; the second image has none."""
    run_interpreted(
        IMPORTS
        + """
grid, samples = (5, 7), range(5)
affinity, rows = torch.randn(6, 25, 35), torch.tensor([0, 0, 0, 0, 0, 2])
for normalization in (Normalization("max"), Normalization("percentile", 90.0)):
    settings = dict(grid=grid, drop_rate=0.7, normalization=normalization, vote_threshold=0.35)
    fold = triton_sampler.fold_samples(affinity, rows, KEYS, samples, **settings)
    assert fold.count == 5
    for image in (0, 2):
        dense = fold_samples(affinity[None, rows == image], [KEYS[image]], samples, **settings)
        assert (fold.maximum[rows == image] - dense.maximum[0]).abs().max() < 1e-6
        assert (fold.mean[rows == image] - dense.mean[0]).abs().max() < 1e-6
        assert torch.equal(fold.votes[rows == image], dense.votes[0])
"""
    )


def test_samples_folded_in_chunks_equal_one_chunk(run_interpreted):
    run_interpreted(
        IMPORTS
        + """
affinity, rows = torch.randn(2, 9, 20), torch.tensor([0, 2])
settings = dict(grid=(4, 5), drop_rate=0.7, normalization=Normalization("max"), vote_threshold=0.35)
whole = triton_sampler.fold_samples(affinity, rows, KEYS, range(5), **settings)
triton_sampler.BYTES_PER_CHUNK = 20 * (2 * 4 + 3 * 1 * 2) * 3  # of 3 and 2 samples
chunked = triton_sampler.fold_samples(affinity, rows, KEYS, range(5), **settings)
assert torch.equal(chunked.maximum, whole.maximum) and torch.equal(chunked.votes, whole.votes)
assert (chunked.mean - whole.mean).abs().max() < 1e-6 and chunked.count == 5
"""
    )


def test_a_map_is_divided_by_its_sorted_value_of_the_rank_and_a_zero_map_stays_zero(run_interpreted):
    """Five samples are folded in three parts, the last one short."""
    run_interpreted(
        IMPORTS
        + """
triton_sampler.SAMPLES_PER_PART = 2
maps = torch.rand(2, 5, 77).mul(100) * (torch.rand(2, 5, 77) < 0.6)
maps[1, 4] = 0
maps[1, 3, 1:] = 0
for rank, threshold in ((1, None), (40, 0.25), (70, None), (77, 0.0)):
    ordered = maps.sort(dim=-1).values
    wanted = torch.where(ordered[..., rank - 1] > 0, ordered[..., rank - 1], ordered[..., -1])
    scaled = (maps / torch.where(wanted > 0, wanted, 1.0)[..., None]).clamp(max=1)
    found = triton_sampler.normalize_and_fold(maps, rank, threshold)
    assert torch.equal(found.maximum, scaled.amax(1)) and found.count == 5
    assert (found.total - scaled.double().sum(1)).abs().max() < 1e-12
    assert (found.votes is None) == (threshold is None)
    assert threshold is None or torch.equal(found.votes, (scaled > threshold).sum(1, dtype=torch.int32))
"""
    )


def test_localiser_gives_the_dense_maps_and_scores_and_keeps_empty_slots_blank(run_interpreted):
    run_interpreted(
        IMPORTS
        + """
features, head = torch.rand(3, 6, 5, 6), StochasticHead(6, 4, 3)
torch.nn.init.normal_(head.weight)
classes = torch.tensor([[1, -1], [-1, -1], [0, 3]])
settings = dict(num_samples=7, drop_rate=0.5, normalization=Normalization("percentile", 80.0), vote_threshold=0.3)
dense, found = (localize(features, head, classes, KEYS, **settings, sampler=name) for name in ("dense", "triton"))
for name in ("max_BSHW", "mean_BSHW", "score_BS"):
    torch.testing.assert_close(getattr(found, name), getattr(dense, name), atol=1e-6, rtol=1e-6, equal_nan=True)
assert torch.equal(found.votes_BSHW, dense.votes_BSHW) and found.votes_BSHW.any()
blank = localize(features, head, torch.full((3, 2), -1), KEYS, **settings, sampler="triton")
assert blank.max_BSHW.isnan().all() and blank.score_BS.isnan().all()
"""
    )


def test_broken_features_stay_visible_as_nan(run_interpreted):
    run_interpreted(
        IMPORTS
        + """
affinity = torch.randn(1, 9, 20)
affinity[0, 4, 7] = torch.nan  # the centre's offset, always kept
rows = torch.zeros(1, dtype=torch.int64)
maps = triton_sampler.sample_maps(affinity, rows, KEYS[:1], range(2), grid=(4, 5), drop_rate=0.5)
assert maps[:, :, 7].isnan().all() and maps.isnan().sum() == 2
"""
    )


def test_kernels_compile_for_a_gpu(tmp_path, monkeypatch):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from ficklenet import triton_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    numbers = ("num_images", "first_sample", "num_samples", "rank", "num_positions")
    types = dict.fromkeys(numbers, "i32") | {"vote_threshold": "fp32", "table": "*i32", "patterns_BNGV": "*i16"}
    types |= {"first_row_B1": "*i64", "inside_GV": "*i16", "keys_B": "*i64", "total_RPV": "*fp64", "votes_RPV": "*i32"}
    tiles = {"NUM_DRAWS": 8, "GROUP": 8, "TILE": 128}
    for kernel, constants in (
        (triton_kernels.draw_patterns, tiles),
        (triton_kernels.sum_maps, tiles | {"KERNEL_SIZE": 9, "ROWS": 4}),
        (triton_kernels.normalize_and_fold, {"IS_VOTING": True, "SAMPLES": 8, "BLOCK": 2048}),
    ):
        signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in kernel.arg_names}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        assert compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]


def test_gpu_sampler_is_chosen_on_a_gpu_only():
    assert samplers_for("cuda")[0] == "triton"
    assert "triton" not in samplers_for("cpu")
    with pytest.raises(ValueError, match=r'"triton" given; it needs float32 features on a GPU'):
        localizer.localize(
            torch.rand(1, 2, 3, 3),
            localizer.StochasticHead(2, 1, 3),
            torch.tensor([[0]]),
            [1],
            num_samples=1,
            drop_rate=0.5,
            normalization=localizer.Normalization(),
            sampler="triton",
        )
