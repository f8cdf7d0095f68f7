"""The exact mean field against the equations written out, and against pydensecrf's lattice."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from ficklenet.crf import AT_MAP_SIZE
from ficklenet.drawing import draw_scene
from ficklenet.mean_field import bilateral_kernel, refine_exactly
from ficklenet.resampling import resize_square
from ficklenet.seeds import resize_labels
from ficklenet.training_crf import refine_batch
from ficklenet.transforms import resize_maps

GRID = 41


def drawn_batch(num_images: int, sure: float = 0.6) -> tuple[torch.Tensor, torch.Tensor]:
    """Images at map size, and blurred truth mixed with doubt as probabilities of 6 labels."""
    scenes = [draw_scene(index) for index in range(num_images)]
    images = torch.stack([torch.from_numpy(resize_square(scene.image, GRID)) for scene in scenes])
    masks = [torch.from_numpy(np.stack([scene.mask == label for label in range(6)])) for scene in scenes]
    coarse = resize_maps(torch.stack(masks).float(), (9, 9))
    return sure * resize_maps(coarse, (GRID, GRID)) + (1 - sure) / 6, images


def naive_mean_field(probabilities: np.ndarray, image: np.ndarray, parameters) -> np.ndarray:
    """One image, pair by pair, in float64."""
    num_labels, height, width = probabilities.shape
    cells = list(np.ndindex(height, width))
    supports = np.zeros((len(cells), len(cells)))
    for reach, colour_reach, weight in (
        (parameters.bilateral_distance, parameters.bilateral_colour, parameters.bilateral_weight),
        (parameters.gaussian_distance, np.inf, parameters.gaussian_weight),
    ):
        kernel = np.empty_like(supports)
        for i, one in enumerate(cells):
            for j, other in enumerate(cells):
                place = sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) / reach**2
                colour = sum((float(a) - float(b)) ** 2 for a, b in zip(image[one], image[other], strict=True))
                kernel[i, j] = np.exp(-(place + colour / colour_reach**2) / 2)
        sums = kernel.sum(axis=1)
        supports += weight * kernel / np.sqrt(sums[:, None] * sums[None, :])
    flat = probabilities.reshape(num_labels, -1)
    evidence = np.log(flat) if parameters.energy == "log" else flat
    marginals = np.exp(evidence) / np.exp(evidence).sum(axis=0)
    for _ in range(parameters.num_iterations):
        marginals = np.exp(evidence + marginals @ supports)
        marginals /= marginals.sum(axis=0)
    return marginals.reshape(probabilities.shape)


@pytest.mark.parametrize("energy", ["log", "linear"])
@pytest.mark.parametrize(("kernel_type", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 0.01)])
def test_exact_mean_field_is_the_equations_written_out(energy, kernel_type, tolerance):
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(3), (2, 5, 6)).transpose(0, 3, 1, 2)
    images = generator.integers(0, 256, (2, 5, 6, 3)).astype(np.uint8)
    parameters = replace(AT_MAP_SIZE, gaussian_distance=1.5, bilateral_colour=60.0, energy=energy)
    found = refine_exactly(
        torch.from_numpy(probabilities),
        torch.from_numpy(images.transpose(0, 3, 1, 2).copy()),
        parameters,
        kernel_type=kernel_type,
    )
    expected = [naive_mean_field(*each, parameters) for each in zip(probabilities, images, strict=True)]
    np.testing.assert_allclose(found.numpy(), np.stack(expected), atol=tolerance)


@pytest.mark.parametrize("energy", ["log", "linear"])
@pytest.mark.parametrize("sure", [0.05, 0.6])
def test_a_kernel_in_half_precision_moves_no_label(energy, sure):
    probabilities, images = drawn_batch(1, sure)
    parameters = replace(AT_MAP_SIZE, energy=energy)
    exact, half = (
        refine_exactly(probabilities, images, parameters, kernel_type=kernel_type)
        for kernel_type in (torch.float32, torch.float16)
    )
    assert torch.equal(exact.argmax(1), half.argmax(1)) and not torch.equal(exact, half)
    assert (exact - half).abs().max() < 0.02 and (exact - half).abs().mean() < 1e-5


@pytest.mark.parametrize("darkest", [0, 240])
def test_bilateral_kernel_is_the_gaussian_of_colours_and_places(darkest: int):
    generator = np.random.default_rng(0)
    images = torch.from_numpy(generator.integers(darkest, 256, (2, 3, 9, 7)).astype(np.uint8))
    places = torch.cartesian_prod(torch.arange(9.0), torch.arange(7.0)).double() / AT_MAP_SIZE.bilateral_distance
    colours = images.double().flatten(2).transpose(1, 2) / AT_MAP_SIZE.bilateral_colour
    features = torch.cat([places.expand(2, -1, -1), colours], dim=2)
    expected = (-0.5 * torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist").square()).exp()
    kernel = bilateral_kernel(images, AT_MAP_SIZE)
    assert kernel.dtype == torch.float32
    torch.testing.assert_close(kernel, expected.float(), atol=1e-7, rtol=1e-4)
    assert torch.equal(kernel.diagonal(dim1=1, dim2=2), torch.ones(2, 63))
    torch.testing.assert_close(kernel, kernel.transpose(1, 2), atol=0, rtol=1e-5)


def test_distances_of_colour_are_exact_with_the_short_mantissas_of_a_gpu():
    """Every number that is multiplied has at most 11 binary digits, as TF32 keeps them."""
    values = torch.tensor([255.0, 2 * 255.0, 256.0, float(3 * 255**2 // 256), 255.0])
    bits = values.view(torch.int32) & ((1 << 13) - 1)  # the digits of float32 that TF32 drops
    assert (bits == 0).all()
    assert 3 * 255**2 * 2 < 2**24


def test_exact_and_lattice_agree_on_drawn_images():
    probabilities, images = drawn_batch(6)
    exact = refine_batch(probabilities, images, method="exact")
    lattice = refine_batch(probabilities, images, method="lattice")
    agreement = (exact.argmax(1) == lattice.argmax(1)).float().mean((1, 2))
    assert agreement.min() > 0.98
    assert (exact - lattice).abs().mean() < 0.005


def test_refinement_moves_labels_to_the_drawn_edges():
    probabilities, images = drawn_batch(6)
    truth = torch.stack([torch.from_numpy(resize_labels(draw_scene(i).mask, (GRID, GRID))) for i in range(6)])
    refined = refine_batch(probabilities, images, method="exact")
    before, after = ((each.argmax(1) == truth).float().mean() for each in (probabilities, refined))
    assert after > before + 0.01


def test_marginals_sum_to_one_and_have_no_gradient():
    probabilities, images = drawn_batch(2)
    probabilities.requires_grad_()
    for method in ("exact", "lattice"):
        refined = refine_batch(probabilities, images, method=method)
        assert refined.dtype == torch.float32 and not refined.requires_grad
        torch.testing.assert_close(refined.sum(1), torch.ones(2, GRID, GRID), atol=1e-4, rtol=0)


def test_cpu_takes_the_lattice_and_other_workers_give_the_same():
    probabilities, images = drawn_batch(3)
    expected = refine_batch(probabilities, images, method="lattice")
    assert torch.equal(refine_batch(probabilities, images), expected)
    with ThreadPoolExecutor(2) as pool:
        assert torch.equal(refine_batch(probabilities, images, map_images=pool.map), expected)


@pytest.mark.parametrize("method", ["exact", "lattice"])
def test_images_of_a_batch_do_not_mix(method):
    probabilities, images = drawn_batch(3)
    together = refine_batch(probabilities, images, method=method)
    alone = refine_batch(probabilities[1:2], images[1:2], method=method)
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=0)
