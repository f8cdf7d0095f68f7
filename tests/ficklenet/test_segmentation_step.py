"""The segmentation network's training step: which losses count where, and that it learns drawn scenes."""

import math

import numpy as np
import pytest
import torch

from ficklenet.crf import AT_MAP_SIZE
from ficklenet.drawing import draw_scene
from ficklenet.geometry import GridGeometry
from ficklenet.growing import grow_seeds
from ficklenet.resampling import resize_square
from ficklenet.seeds import resize_labels
from ficklenet.segmentation_losses import boundary_loss, full_loss, label_probabilities, seed_loss
from ficklenet.segmentation_training import (
    LossWeights,
    SegmentationBatch,
    crf_parameters,
    default_learning_rate,
    learning_rate_at,
    make_optimizer,
    relabelled_batch,
    segmentation_loss,
)
from ficklenet.segmenter import Segmenter, SegmenterSpec
from ficklenet.training_crf import refine_batch
from ficklenet.transforms import normalize

SIZE, GRID, UNKNOWN = 65, 9, 255


def drawn_batch(num_images: int = 4, num_classes: int = 3) -> SegmentationBatch:
    """Drawn scenes with their truth, of which every third cell is a seed."""
    scenes = [draw_scene(index, num_classes=num_classes) for index in range(num_images)]
    images = torch.from_numpy(np.stack([resize_square(scene.image, SIZE) for scene in scenes]))
    truth = torch.from_numpy(np.stack([resize_labels(scene.mask, (GRID, GRID)) for scene in scenes])).long()
    present = torch.tensor([[True, *(label in scene.labels for label in range(num_classes))] for scene in scenes])
    is_seed = torch.rand(truth.shape, generator=torch.Generator().manual_seed(0)) < 0.34
    return SegmentationBatch(images, truth.where(is_seed, UNKNOWN), present, truth, torch.ones(num_images))


def without_masks(batch: SegmentationBatch) -> SegmentationBatch:
    return batch._replace(truth=torch.full_like(batch.truth, UNKNOWN))


def segmenter(num_classes: int = 3) -> Segmenter:
    """Without dropout, so that losses can be compared."""
    torch.manual_seed(0)
    return Segmenter(SegmenterSpec("small", tuple(map(str, range(num_classes))), input_size=SIZE)).eval()


def test_loss_is_the_sum_of_its_parts_written_out():
    model, batch = segmenter(), drawn_batch()
    probabilities = label_probabilities(model(normalize(batch.images)))
    refined = refine_batch(probabilities, batch.images[:, :, ::8, ::8])
    parts = {
        "seed": seed_loss(probabilities, grow_seeds(batch.seeds, refined, batch.present)).mean(),
        "boundary": boundary_loss(probabilities, refined).mean(),
        "full": full_loss(probabilities, batch.truth).mean(),
    }
    losses = segmentation_loss(model, batch, LossWeights())
    for name, value in parts.items():
        torch.testing.assert_close(losses[name], value)
    torch.testing.assert_close(losses["loss"], parts["seed"] + parts["boundary"] + 2 * parts["full"])


def test_gradient_is_that_of_the_losses_with_refinement_and_growing_as_data():
    model, batch = segmenter(), drawn_batch()
    segmentation_loss(model, batch, LossWeights())["loss"].backward()
    found = model.head.branches[0][-1].weight.grad.clone()
    with torch.no_grad():
        probabilities = label_probabilities(model(normalize(batch.images)))
        refined = refine_batch(probabilities, batch.images[:, :, ::8, ::8])
        grown = grow_seeds(batch.seeds, refined, batch.present)
    model.zero_grad()
    probabilities = label_probabilities(model(normalize(batch.images)))
    parts = (seed_loss(probabilities, grown), boundary_loss(probabilities, refined))
    (sum(loss.mean() for loss in parts) + 2 * full_loss(probabilities, batch.truth).mean()).backward()
    torch.testing.assert_close(found, model.head.branches[0][-1].weight.grad)


def test_only_images_with_masks_take_the_full_loss():
    model, batch = segmenter(), drawn_batch()
    weak = segmentation_loss(model, without_masks(batch), LossWeights())
    assert weak["full"] == 0 and weak["loss"] == weak["seed"] + weak["boundary"]
    half = batch._replace(truth=torch.cat([batch.truth[:2], torch.full_like(batch.truth[2:], UNKNOWN)]))
    semi = segmentation_loss(model, half, LossWeights())
    masked = segmentation_loss(model, batch.micro_batch(slice(0, 2)), LossWeights())
    torch.testing.assert_close(semi["full"], masked["full"] / 2)
    torch.testing.assert_close(semi["seed"], weak["seed"])


def test_full_supervision_needs_neither_seeds_nor_crf():
    def no_crf(*_):
        raise AssertionError

    model, batch = segmenter(), drawn_batch()
    losses = segmentation_loss(model, batch, LossWeights(0, 0, 1), map_images=no_crf)
    assert losses["loss"].item() == losses["full"].item() > 0 == losses["seed"].item()


def test_an_image_of_weight_zero_counts_for_nothing():
    model, batch = segmenter(), drawn_batch()
    without_last = segmentation_loss(model, batch.micro_batch(slice(0, 3)), LossWeights())
    blank = batch._replace(images=batch.images.clone(), weights=torch.tensor([1.0, 1, 1, 0]))
    blank.images[3] = 0
    torch.testing.assert_close(segmentation_loss(model, blank, LossWeights()), without_last)
    nothing = segmentation_loss(model, batch._replace(weights=torch.zeros(4)), LossWeights())
    assert nothing["loss"] == 0


def test_two_workers_average_to_the_loss_of_one():
    model, batch = segmenter(), drawn_batch(5)
    whole = segmentation_loss(model, batch, LossWeights())["loss"]
    shares = [
        segmentation_loss(model, batch.micro_batch(slice(rank, None, 2)), LossWeights(), total_weight=2.5)["loss"]
        for rank in range(2)
    ]
    torch.testing.assert_close(sum(shares) / 2, whole)


def test_images_without_seeds_still_learn_boundaries():
    batch = without_masks(drawn_batch())
    losses = segmentation_loss(segmenter(), batch._replace(seeds=torch.full_like(batch.seeds, UNKNOWN)), LossWeights())
    assert losses["seed"] == 0 < losses["boundary"]
    assert torch.isfinite(losses["loss"])


def test_the_energy_of_the_crf_changes_the_boundary_loss():
    model, batch = segmenter(), drawn_batch()
    logits = 3 * torch.nn.functional.one_hot(batch.truth, 4).permute(0, 3, 1, 2).float()
    model.forward = lambda images: logits  # sure of itself, unlike an untrained network
    log, linear = (segmentation_loss(model, batch, LossWeights(), crf_energy=energy) for energy in ("log", "linear"))
    assert float(log["boundary"]) != pytest.approx(float(linear["boundary"]), rel=1e-2)


@pytest.mark.parametrize("num_classes", [1, 80])
def test_one_class_and_eighty_are_trained(num_classes):
    model, drawn = segmenter(num_classes), drawn_batch(2, 1)
    present = torch.zeros(2, num_classes + 1, dtype=torch.bool)
    present[:, :2] = True
    losses = segmentation_loss(model, drawn._replace(present=present), LossWeights())
    losses["loss"].backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters())


def test_mirrored_images_and_seeds_have_the_mirrored_losses():
    model, batch = segmenter(), drawn_batch()
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):  # a network that cannot tell left from right
            layer.weight.data = (layer.weight.data + layer.weight.data.flip(-1)) / 2
    mirrored = batch._replace(images=batch.images.flip(-1), seeds=batch.seeds.flip(-1), truth=batch.truth.flip(-1))
    losses, expected = (segmentation_loss(model, each, LossWeights(), crf_method="exact") for each in (mirrored, batch))
    torch.testing.assert_close(losses, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("supervision", ["weak", "semi"])
def test_a_few_steps_learn_drawn_scenes(supervision):
    torch.manual_seed(0)
    batch = drawn_batch(6)
    given = without_masks(batch) if supervision == "weak" else batch
    model = Segmenter(SegmenterSpec("small", ("a", "b", "c"), dilations=(2,), input_size=SIZE))
    optimizer = make_optimizer(model, learning_rate=1e-3)
    for _ in range(50):
        optimizer.zero_grad()
        segmentation_loss(model, given, LossWeights())["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        predicted = model.eval()(normalize(batch.images)).argmax(1)
    is_object = batch.truth > 0
    assert (predicted == batch.truth)[is_object].float().mean() > 0.4
    assert (predicted == batch.truth).float().mean() > (~is_object).float().mean() + 0.03


def test_features_as_large_as_imagenets_do_not_saturate_the_head():
    """Root mean square 16 behind VGG-16; a saturated pixel costs 9.2 and gets no gradient any more."""
    torch.manual_seed(0)
    model = Segmenter(SegmenterSpec("vgg16", tuple("abcde"), dilations=(1,), input_size=33))
    optimizer = make_optimizer(model, learning_rate=5e-4)
    truth = torch.arange(6)[:, None, None].expand(6, 5, 5)
    features = (torch.randn(6, 512, 1, 1) + torch.randn(6, 512, 5, 5)).relu()  # alike where the label is the same
    features *= 16 / features.square().mean().sqrt()
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = full_loss(label_probabilities(model.head(features)), truth).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert max(losses) < 2 * math.log(6) and losses[-1] < 0.5 * losses[0]


def test_new_layers_train_at_ten_times_and_biases_at_twice_the_rate():
    model = segmenter()
    optimizer = make_optimizer(model, learning_rate=1e-3)
    found = [(group["lr"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
    assert found == [(1e-3, 5e-4, 5), (2e-3, 0, 5), (1e-2, 5e-4, 3), (2e-2, 0, 3)]
    assert optimizer.param_groups[0]["momentum"] == 0.9
    model.backbone.freeze_stages(model.backbone.num_stages)
    groups = make_optimizer(model, learning_rate=1e-3).param_groups
    assert [len(group["params"]) for group in groups] == [0, 0, 3, 3]
    model.head.has_fc_weights = True
    groups = make_optimizer(model, learning_rate=1e-3).param_groups
    assert [len(group["params"]) for group in groups] == [2, 2, 1, 1]


def test_layer_wise_decay_slows_the_first_stages_and_no_layer_of_the_head():
    groups = make_optimizer(segmenter(), learning_rate=1.0, layer_decay=0.5).param_groups
    expected = [0.125, 0.25, 0.25, 0.5, 0.5, 1, 1, 2, 10, 20]  # weights and biases of four stages, then the head's
    assert [group["lr"] for group in groups] == pytest.approx(expected)
    assert [len(group["params"]) for group in groups] == [1, 1, 1, 1, 1, 1, 2, 2, 3, 3]
    with pytest.raises(ValueError, match="layer decay"):
        make_optimizer(segmenter(), learning_rate=1.0, layer_decay=0.0)


def test_learning_rate_falls_to_a_third_in_each_eighth_of_the_training():
    assert [learning_rate_at(step, 8000, 1.0) for step in (0, 999, 1000, 7999)] == pytest.approx([1, 1, 0.33, 0.33**7])
    assert learning_rate_at(2, 3, 1.0) == pytest.approx(0.33**5)


def test_poly_schedule_falls_to_zero_at_the_end():
    rates = [learning_rate_at(step, 1000, 1e-3, "poly") for step in (0, 500, 999)]
    assert rates == pytest.approx([1e-3, 1e-3 * 0.5**0.9, 1e-3 * 0.001**0.9])


def test_deep_networks_start_at_deeplabs_rate():
    assert [default_learning_rate("vgg16", schedule) for schedule in ("steps", "poly")] == [5e-4, 1e-3]
    assert [default_learning_rate("resnet101", schedule) for schedule in ("steps", "poly")] == [2.5e-4, 2.5e-4]


def test_the_crf_reaches_as_many_pixels_at_every_stride():
    assert crf_parameters(GridGeometry(8)) == AT_MAP_SIZE
    coarse = crf_parameters(GridGeometry(32))
    assert coarse.bilateral_distance * 32 == pytest.approx(80 / 12 * 8)
    assert coarse.gaussian_distance * 32 == pytest.approx(3 / 12 * 8)
    assert coarse.bilateral_colour == AT_MAP_SIZE.bilateral_colour


def test_a_network_without_a_specification_is_refused():
    with pytest.raises(TypeError, match="a Identity without a SegmenterSpec given"):
        relabelled_batch(torch.nn.Identity(), drawn_batch())


@pytest.mark.parametrize("micro_batch_size", [0, 1, 3])
def test_a_teacher_labels_what_has_no_mask_among_the_images_labels(micro_batch_size):
    teacher, batch = segmenter(), drawn_batch()
    torch.nn.init.normal_(teacher.head.branches[0][-1].weight)  # so that it has opinions
    half = batch._replace(truth=torch.cat([batch.truth[:2], torch.full_like(batch.truth[2:], UNKNOWN)]))
    relabelled = relabelled_batch(teacher, half, micro_batch_size=micro_batch_size)
    probabilities = label_probabilities(teacher(normalize(batch.images)))
    refined = refine_batch(probabilities, batch.images[:, :, ::8, ::8])
    absent = ~batch.present[:, :, None, None]
    expected = refined.masked_fill(absent, -1).argmax(1)
    assert (refined.argmax(1) != expected).any()  # it would name labels that the image does not have
    assert torch.equal(relabelled.truth, torch.cat([batch.truth[:2], expected[2:]]))
    assert all(torch.equal(getattr(relabelled, name), getattr(half, name)) for name in ("images", "seeds", "weights"))
    assert not relabelled.truth.requires_grad
