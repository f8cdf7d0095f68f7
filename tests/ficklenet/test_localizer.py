"""The localiser: normalisation, fold, slots, and the compiled path against the plain one."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ficklenet import dense_sampler, localizer
from ficklenet.dense_sampler import expected_evidence, fold_samples, sample_evidence
from ficklenet.folding import Normalization, SampleFold
from ficklenet.head import StochasticHead
from ficklenet.localizer import deterministic_maps, localize, samplers_for
from ficklenet.masks import INFERENCE_STREAM, dropout_masks, mask_key

GRID = (6, 7)
KEYS = [mask_key(0, "a"), mask_key(0, "b")]
MAXIMUM = Normalization("max")
NORMALIZATIONS = [MAXIMUM, Normalization("percentile", 80.0)]


@pytest.fixture
def head():
    torch.manual_seed(0)
    head = StochasticHead(4, 5, kernel_size=3)
    torch.nn.init.normal_(head.weight)
    torch.nn.init.normal_(head.bias)
    return head


@pytest.fixture
def features():
    return torch.randn(2, 4, *GRID, generator=torch.Generator().manual_seed(1))


def run(features, head, classes, keys=KEYS, **changes):
    settings = {"num_samples": 20, "drop_rate": 0.5, "normalization": MAXIMUM}
    return localize(features, head, torch.tensor(classes), keys, **settings | changes)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_maps_are_the_maximum_and_mean_of_normalised_samples(head, features, normalization):
    """Against the definition, sample by sample: an own loop and numpy's sort."""
    maps = run(features, head, [[0, 3], [2, 4]], normalization=normalization)
    masks = dropout_masks(KEYS, range(20), kernel_size=3, grid=GRID, drop_rate=0.5, stream=INFERENCE_STREAM)
    affinity = head.affinity(features, torch.tensor([[0, 3], [2, 4]])).detach()
    evidence = sample_evidence(affinity, masks, GRID).relu().numpy()
    rank = 42 if normalization.kind == "max" else 34  # ceil(80 % of 42 positions)
    for image in range(2):
        for slot in range(2):
            samples = []
            for values in evidence[:, image, slot]:
                divisor = sorted(values.ravel())[rank - 1] or values.max() or 1.0
                samples.append(torch.from_numpy(values / divisor).clamp(max=1))
            stack = torch.stack(samples)
            assert torch.allclose(maps.max_BSHW[image, slot], stack.amax(0), atol=1e-5)
            assert torch.allclose(maps.mean_BSHW[image, slot], stack.mean(0), atol=1e-5)


def test_score_is_the_expected_logit_of_each_wanted_class(head, features):
    score = run(features, head, [[0, 3], [2, -1]]).score_BS
    logits = head.expected_logits(features, 0.5)
    assert torch.allclose(score[0], logits[0, [0, 3]], atol=1e-5)
    assert torch.allclose(score[1, 0], logits[1, 2], atol=1e-5)


@pytest.mark.parametrize("sampler", ["compiled", "dense"])
def test_empty_slots_are_nan_and_real_slots_are_not(head, features, sampler):
    maps = run(features, head, [[-1, 1], [-1, -1]], sampler=sampler)
    for values in (maps.max_BSHW, maps.mean_BSHW, maps.score_BS):
        assert values.dtype == torch.float32
        assert not values[0, 1].isnan().any()
        assert values[0, 0].isnan().all() and values[1].isnan().all()
    deterministic = deterministic_maps(
        features, head, torch.tensor([[-1, 1], [-1, -1]]), drop_rate=0.5, normalization=MAXIMUM
    )
    assert deterministic.isnan().all((2, 3)).tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize("sampler", ["compiled", "dense"])
def test_a_map_does_not_depend_on_the_batch_or_the_slots_around_it(head, features, sampler):
    together = run(features, head, [[0, 3, -1], [1, 2, 4]], sampler=sampler)
    alone = run(features[1:], head, [[2]], keys=KEYS[1:], sampler=sampler)
    assert torch.allclose(together.max_BSHW[1, 1], alone.max_BSHW[0, 0], atol=1e-6)
    if sampler == "compiled":  # byte equality is a promise on the CPU
        batched = run(features, head, [[0, 3, -1], [2, -1, -1]])
        assert torch.equal(batched.max_BSHW[1, 0], alone.max_BSHW[0, 0])
        assert torch.equal(batched.mean_BSHW[1, 0], alone.mean_BSHW[0, 0])


@given(
    seed=st.integers(0, 2**32),
    cuts=st.lists(st.integers(1, 11), max_size=4),
    normalization=st.sampled_from(NORMALIZATIONS),
)
@settings(deadline=None, max_examples=25)
def test_folding_samples_is_associative(seed, cuts, normalization):
    affinity = torch.randn(2, 2, 9, 42, generator=torch.Generator().manual_seed(seed))

    def fold(samples):
        return fold_samples(
            affinity, KEYS, samples, grid=GRID, drop_rate=0.5, normalization=normalization, vote_threshold=0.35
        )

    whole = fold(range(12))
    edges = [0, *sorted(set(cuts)), 12]
    parts = [fold(range(start, stop)) for start, stop in itertools.pairwise(edges)]
    merged = parts[-1]
    for part in reversed(parts[:-1]):  # grouped from the right, against the whole's left
        merged = merged.merge(part)
    assert merged.count == whole.count == 12
    assert torch.equal(merged.maximum, whole.maximum)
    assert torch.equal(merged.votes, whole.votes) and torch.equal(merged.vote_share, whole.vote_share)
    assert torch.allclose(merged.mean, whole.mean, atol=1e-7)


def test_dense_path_in_chunks_equals_one_chunk(head, features, monkeypatch):
    whole = run(features, head, [[0, 1], [2, 3]], sampler="dense")
    monkeypatch.setattr(dense_sampler, "MASK_ELEMENTS_PER_CHUNK", 9 * 42 * 3)  # 3 samples of an image at a time
    chunked = run(features, head, [[0, 1], [2, 3]], sampler="dense")
    assert torch.equal(whole.max_BSHW, chunked.max_BSHW)
    assert torch.allclose(whole.mean_BSHW, chunked.mean_BSHW, atol=1e-7)


def test_percentile_divides_by_the_stated_order_statistic_and_clips():
    values = torch.arange(10.0).view(1, 2, 5)
    scaled = Normalization("percentile", 80.0).apply(values)  # rank ceil(8) of 0..9: the value 7
    assert torch.equal(scaled, (values / 7).clamp(max=1))
    assert [Normalization("percentile", 90.0).rank(count) for count in (10, 11, 1681)] == [9, 10, 1513]
    assert Normalization("max").rank(1681) == 1681


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_zero_map_stays_zero_and_a_sparse_map_is_divided_by_its_maximum(normalization):
    assert torch.equal(normalization.apply(torch.zeros(2, 5, 5)), torch.zeros(2, 5, 5))
    sparse = torch.zeros(1, 5, 5)
    sparse[0, 1, 1], sparse[0, 0, 0] = 4.0, 1.0
    assert torch.equal(normalization.apply(sparse), sparse / 4)


def test_without_dropout_every_sample_is_the_deterministic_map(head, features):
    classes = [[0, 3], [2, 4]]
    maps = run(features, head, classes, num_samples=3, drop_rate=0.0)
    deterministic = deterministic_maps(features, head, torch.tensor(classes), drop_rate=0.0, normalization=MAXIMUM)
    assert torch.allclose(maps.max_BSHW, deterministic, atol=1e-5)
    assert torch.allclose(maps.mean_BSHW, deterministic, atol=1e-5)


def test_more_samples_never_lower_the_maximum(head, features):
    few, many = (run(features, head, [[0], [1]], num_samples=count).max_BSHW for count in (5, 50))
    assert (many >= few).all() and (many > few).any()


def test_fold_mean_is_the_mean_of_the_samples():
    maps = torch.rand(7, 2, 3, 3)
    fold = SampleFold.of(maps)
    assert torch.allclose(fold.mean, maps.mean(0)) and torch.equal(fold.maximum, maps.amax(0))


@pytest.mark.parametrize("sampler", ["compiled", "dense"])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_votes_are_the_share_of_samples_above_the_threshold(head, features, sampler, normalization):
    """Against the definition, from single samples: of one sample the maximum is the map itself."""
    classes, num_samples = [[0, 3], [2, -1]], 17
    found = run(
        features,
        head,
        classes,
        num_samples=num_samples,
        normalization=normalization,
        sampler=sampler,
        vote_threshold=0.35,
    )
    masks = dropout_masks(KEYS, range(num_samples), kernel_size=3, grid=GRID, drop_rate=0.5, stream=INFERENCE_STREAM)
    affinity = head.affinity(features, torch.tensor([[0, 3], [2, 2]])).detach()
    counts = (normalization.apply(sample_evidence(affinity, masks, GRID).relu()) > 0.35).sum(0)
    expected = [[round(255 * int(count) / num_samples) for count in cells.flatten()] for cells in counts.flatten(0, 1)]
    assert found.votes_BSHW.dtype == torch.uint8
    assert found.votes_BSHW.flatten(0, 1).flatten(1).tolist()[:3] == expected[:3]
    assert len({value for values in expected for value in values}) > 8
    assert not found.votes_BSHW[1, 1].any()  # an empty slot


def test_votes_do_not_change_the_maps_and_are_left_out_without_a_threshold(head, features):
    plain, voted = (run(features, head, [[0], [1]], vote_threshold=threshold) for threshold in (None, 0.5))
    assert plain.votes_BSHW is None and voted.votes_BSHW is not None
    assert torch.equal(plain.max_BSHW, voted.max_BSHW) and torch.equal(plain.mean_BSHW, voted.mean_BSHW)


def test_vote_share_is_rounded_to_the_nearest_number_with_halves_up():
    blank = torch.zeros(3)
    votes = torch.tensor([0, 1, 2], dtype=torch.int32)
    assert SampleFold(blank, blank.double(), 2, votes).vote_share.tolist() == [0, 128, 255]  # 127.5 is a half
    votes = torch.tensor([1, 100, 199], dtype=torch.int32)
    assert SampleFold(blank, blank.double(), 200, votes).vote_share.tolist() == [1, 128, 254]  # 1.275, 127.5, 253.725


@pytest.mark.parametrize("drop_rate", [0.3, 0.9])
def test_mean_map_over_many_samples_is_the_exact_expectation_where_no_sum_is_negative(head, features, drop_rate):
    """With positive evidence ReLU does nothing, so the samples' mean tends to the expected map, which is computed
    without sampling: a wrong keep rate, position or border shows."""
    affinity = head.affinity(features, torch.tensor([[0], [1]])).detach().double().abs()
    masks = dropout_masks(KEYS, range(4000), kernel_size=3, grid=GRID, drop_rate=drop_rate, stream=INFERENCE_STREAM)
    maps = sample_evidence(affinity, masks, GRID)
    error = maps.std(0) / len(maps) ** 0.5
    difference = (maps.mean(0) - expected_evidence(affinity, GRID, drop_rate)) / error
    assert difference.abs().max() < 4.5 and abs((difference**2).mean() - 1) < 0.5


def test_impossible_requests_are_refused(head, features):
    with pytest.raises(ValueError, match=r"classes from 0 to 5 given.*0 to 4"):
        run(features, head, [[0], [5]])
    with pytest.raises(ValueError, match=r"given 2 images and 1 keys, allowed: as many keys as images"):
        run(features, head, [[0], [1]], keys=KEYS[:1])
    with pytest.raises(ValueError, match=r"num_samples: given 0, allowed: a whole number from 1"):
        run(features, head, [[0], [1]], num_samples=0)
    with pytest.raises(ValueError, match=r"vote_threshold: 1.0 given.*below 1"):
        run(features, head, [[0], [1]], vote_threshold=1.0)
    with pytest.raises(ValueError, match=r"percentile: 0.0 given"):
        Normalization("percentile", 0.0)
    with pytest.raises(ValueError, match=r'kind: "median" given'):
        Normalization("median")


def test_compiled_sampler_is_used_on_the_cpu_in_float32_only(head, features):
    pytest.importorskip("numba")
    assert samplers_for("cpu")[0] == "compiled"
    assert samplers_for("cpu", torch.float64) == ["dense"]
    with pytest.raises(ValueError, match=r'"compiled" given; it needs float32'):
        run(features.double(), head.double(), [[0], [1]], sampler="compiled")
    exact = run(features.double(), head, [[0], [1]])  # in float64 only the dense one can run
    assert torch.allclose(run(features, head.float(), [[0], [1]]).max_BSHW, exact.max_BSHW, atol=1e-5)


def test_localiser_works_where_numba_is_absent():
    script = """
import sys
sys.modules["numba"] = None  # as on a bare GPU machine: importing it fails
import torch
from ficklenet.folding import Normalization
from ficklenet.head import StochasticHead
from ficklenet.localizer import localize
maps = localize(torch.rand(1, 2, 4, 4), StochasticHead(2, 1, 3), torch.tensor([[0]]), [1],
                num_samples=2, drop_rate=0.5, normalization=Normalization())
assert maps.max_BSHW.isfinite().all()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120, cwd=Path(localizer.__file__).parents[1])
