"""Arrays of another type or shape are refused in one sentence, by every public function that takes arrays."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import ficklenet
from ficklenet.arguments import require_one_per_image
from ficklenet.baselines import blurred, dilated, divided_by_maximum
from ficklenet.calibration import theta_without_masks
from ficklenet.cell_classifier import (
    CellSpec,
    LabelledCells,
    cell_features,
    cell_network,
    cell_probabilities,
    choose_cells,
)
from ficklenet.classifier import ClassifierSpec, FickleNet, predicted_classes
from ficklenet.classifier_losses import average_over_images, multilabel_loss
from ficklenet.classifier_training import step_in_micro_batches, training_loss, training_step
from ficklenet.crf import AT_MAP_SIZE, refine
from ficklenet.folding import Normalization
from ficklenet.frozen_features import FeatureBatch, frozen_features, head_loss, head_step
from ficklenet.geometry import GridGeometry
from ficklenet.growing import grow_seeds
from ficklenet.head import StochasticHead
from ficklenet.label_image import label_image
from ficklenet.localizer import deterministic_maps, localize
from ficklenet.map_fusion import View, fuse
from ficklenet.masks import mask_key
from ficklenet.mean_field import bilateral_kernel, refine_exactly
from ficklenet.metrics import (
    average_precision,
    confusion_matrix,
    disagreement,
    label_metrics,
    map_mismatch,
    seed_error,
)
from ficklenet.propagation import Likeness, transitions, walk
from ficklenet.resampling import resize_square, training_crop
from ficklenet.seeds import aggregate, background_cue, dense_scores, densify, resize_labels
from ficklenet.segmentation_inference import enlarged_probabilities, predict_grid
from ficklenet.segmentation_losses import boundary_loss, full_loss, label_probabilities, seed_loss
from ficklenet.segmentation_training import (
    LossWeights,
    SegmentationBatch,
    relabelled_batch,
    segmentation_loss,
    segmentation_step,
)
from ficklenet.segmenter import Segmenter, SegmenterSpec
from ficklenet.training_crf import refine_batch
from ficklenet.transforms import normalize, resize_maps

IMAGE = np.zeros((6, 7, 3), np.uint8)
IMAGES = torch.zeros(2, 3, 33, 33, dtype=torch.uint8)
PHOTO = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
PHOTOS = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 3, 33, 33), dtype=np.uint8))
KEYS = [mask_key(0, "a"), mask_key(0, "b")]
MAPS, TRUE = np.zeros((2, 5, 5), np.float32), np.ones((5, 5), bool)
LABELS, CLASSES = np.zeros((5, 5), np.uint8), np.array([0, 3])
PROBABILITIES = torch.full((2, 3, 5, 5), 1 / 3)
SEEDS, PRESENT = torch.zeros(2, 5, 5, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool)
AT_CELLS = torch.zeros(2, 3, 5, 5, dtype=torch.uint8)
TARGETS, WEIGHTS = torch.zeros(2, 2), torch.ones(2)
BATCH = SegmentationBatch(IMAGES, SEEDS, PRESENT, SEEDS, WEIGHTS)
CLASSIFIER = FickleNet(ClassifierSpec("small", ("a", "b"), kernel_size=3, input_size=33))
SEGMENTER = Segmenter(SegmenterSpec("small", ("a", "b"), input_size=33)).eval()
HEAD, FEATURES = StochasticHead(4, 5, 3), torch.zeros(1, 4, 5, 5)
MAXIMUM = Normalization("max")
SGD = torch.optim.SGD(CLASSIFIER.parameters())
KEPT = FeatureBatch(torch.zeros(2, 4, 5, 5), torch.zeros(2, 5), KEYS)


def map_one(features, classes, normalization=MAXIMUM, head=HEAD, keys=None, num_samples=2):
    keys = KEYS[: len(features)] if keys is None else keys
    return localize(features, head, classes, keys, num_samples=num_samples, drop_rate=0.5, normalization=normalization)


def plain(features, classes, normalization=MAXIMUM):
    return deterministic_maps(features, HEAD, classes, drop_rate=0.5, normalization=normalization)


def cue(max_, saliency):
    return background_cue(max_, saliency, saliency_threshold=0.06, evidence_threshold=0.2)


def seeds(max_=MAPS, mean=MAPS, classes=CLASSES, background=TRUE):
    return aggregate(max_, mean, classes, background, theta=0.3, priority="background", ignore_value=255)


def train(images=IMAGES, targets=TARGETS, keys=KEYS, weights=WEIGHTS):
    return training_step(CLASSIFIER, SGD, images, targets, keys, 0, weights)


def loss_of(images=IMAGES, targets=TARGETS, keys=KEYS):
    return training_loss(CLASSIFIER, images, targets, keys, 0)


def learn(**changes):
    return segmentation_loss(SEGMENTER, BATCH._replace(**changes), LossWeights())


WRONG: dict[Callable, list[Callable[[], object]]] = {
    resize_square: [
        lambda: resize_square(IMAGE / 255, 9),
        lambda: resize_square(IMAGE[..., 0], 9),
        lambda: resize_square(torch.from_numpy(IMAGE), 9),
        lambda: resize_square(IMAGE.transpose(2, 0, 1), 9),
        lambda: resize_square(IMAGE[:0], 9),
        lambda: resize_square(IMAGE.astype(np.uint16), 9),
        lambda: resize_square("file.jpg", 9),
        lambda: resize_square(IMAGE, (9, 9)),
        lambda: resize_square(IMAGE, 9.0),
    ],
    training_crop: [
        lambda: training_crop(IMAGE / 255, 9, np.random.default_rng(0)),
        lambda: training_crop(IMAGE, (9, 9), np.random.default_rng(0)),
    ],
    normalize: [
        lambda: normalize(IMAGES / 255),
        lambda: normalize(IMAGES[0]),
        lambda: normalize(IMAGES.permute(0, 2, 3, 1)),
        lambda: normalize(IMAGES.numpy()),
    ],
    resize_maps: [lambda: resize_maps(SEEDS.byte(), (9, 9)), lambda: resize_maps(MAPS, (9, 9))],
    GridGeometry.resize_maps: [lambda: GridGeometry(8, "centres").resize_maps(SEEDS.byte(), (9, 9))],
    GridGeometry.resize_labels: [lambda: GridGeometry(8, "centres").resize_labels(MAPS[0], (9, 9))],
    resize_labels: [lambda: resize_labels(MAPS[0], (9, 9)), lambda: resize_labels(LABELS[None], (9, 9))],
    training_step: [
        lambda: train(images=IMAGES / 255),
        lambda: train(images=IMAGES[:, :, :25, :25]),
        lambda: train(targets=TARGETS[:1]),
        lambda: train(keys=KEYS[:1]),
        lambda: train(weights=WEIGHTS[:1]),
        lambda: train(weights=None),
    ],
    training_loss: [lambda: loss_of(images=IMAGES / 255), lambda: loss_of(keys=KEYS[:1])],
    step_in_micro_batches: [lambda: step_in_micro_batches(CLASSIFIER, SGD, print, torch.ones(2, 1))],
    multilabel_loss: [
        lambda: multilabel_loss(TARGETS, TARGETS[0], WEIGHTS),
        lambda: multilabel_loss(WEIGHTS, WEIGHTS, WEIGHTS),
        lambda: multilabel_loss(TARGETS, TARGETS - 1, WEIGHTS),
        lambda: multilabel_loss(TARGETS, TARGETS * float("nan"), WEIGHTS),
    ],
    average_over_images: [
        lambda: average_over_images(WEIGHTS, WEIGHTS[:, None]),
        lambda: average_over_images(WEIGHTS, WEIGHTS[:1]),
    ],
    predicted_classes: [lambda: predicted_classes(TARGETS[0], 0.5, 1, 1)],
    frozen_features: [lambda: frozen_features(CLASSIFIER.backbone, IMAGES / 255, torch.float32)],
    head_loss: [lambda: head_loss(HEAD, replace(KEPT, keys=KEYS[:1]), 0, drop_rate=0.5)],
    head_step: [lambda: head_step(HEAD, SGD, replace(KEPT, weights_B=WEIGHTS[:1]), 0, drop_rate=0.5)],
    localize: [
        lambda: map_one(FEATURES, torch.tensor([0])),
        lambda: map_one(FEATURES, [[0]]),
        lambda: map_one(FEATURES, torch.tensor([[0.0]])),
        lambda: map_one(FEATURES[0], torch.tensor([[0]])),
        lambda: map_one(FEATURES, torch.tensor([[0]]), "max"),
        lambda: map_one(FEATURES, torch.tensor([[0]]), head=CLASSIFIER),
        lambda: map_one(FEATURES, torch.tensor([[0]]), keys=["a"]),
        lambda: map_one(FEATURES, torch.tensor([[0]]), keys=KEYS),
        lambda: map_one(FEATURES, torch.tensor([[0]]), num_samples=2.0),
    ],
    mask_key: [lambda: mask_key("a", 0), lambda: mask_key(0, 1)],
    deterministic_maps: [
        lambda: plain(FEATURES, torch.tensor([0])),
        lambda: plain(FEATURES, torch.tensor([[0]]), "max"),
    ],
    background_cue: [
        lambda: cue(MAPS, LABELS),
        lambda: cue(MAPS, MAPS[0, :1]),
        lambda: cue(MAPS[0], None),
    ],
    aggregate: [
        lambda: seeds(classes=np.array([0, -1])),
        lambda: seeds(classes=np.array([0.0, 1.0])),
        lambda: seeds(classes=CLASSES[:1]),
        lambda: seeds(mean=MAPS[:1]),
        lambda: seeds(max_=MAPS[:, :1]),
        lambda: seeds(background=LABELS),
    ],
    dense_scores: [
        lambda: dense_scores(MAPS, LABELS, background_exponent=1.0),
        lambda: dense_scores(MAPS[0], None, background_exponent=1.0),
    ],
    densify: [lambda: densify(MAPS, CLASSES), lambda: densify(MAPS, np.array([-1]))],
    confusion_matrix: [
        lambda: confusion_matrix(MAPS[0], LABELS, 3, 255),
        lambda: confusion_matrix(LABELS, torch.zeros(5, 5), 3, 255),
    ],
    label_metrics: [lambda: label_metrics(np.ones((3, 3), np.int64))],
    average_precision: [
        lambda: average_precision(WEIGHTS, WEIGHTS),
        lambda: average_precision(TARGETS, TARGETS[:1]),
    ],
    disagreement: [lambda: disagreement(MAPS[0], MAPS[0, :1], 0.3)],
    map_mismatch: [
        lambda: map_mismatch(LABELS[:1], MAPS, MAPS, CLASSES, 0.3, 255),
        lambda: map_mismatch(LABELS, MAPS, MAPS, np.array([0, -1]), 0.3, 255),
    ],
    seed_error: [lambda: seed_error(LABELS, TRUE), lambda: seed_error(TRUE, TRUE[:1])],
    blurred: [lambda: blurred(MAPS[0], 1.0)],
    dilated: [lambda: dilated(MAPS[0], 1)],
    divided_by_maximum: [lambda: divided_by_maximum(MAPS[None])],
    theta_without_masks: [lambda: theta_without_masks([np.array([0.5, np.nan])], 0.1)],
    cell_features: [lambda: cell_features([FEATURES])],
    choose_cells: [lambda: choose_cells(MAPS[0], 255, 4, np.random.default_rng(0))],
    LabelledCells: [lambda: LabelledCells(torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64), PRESENT)],
    cell_probabilities: [
        lambda: cell_probabilities(cell_network(CellSpec(4, 3)), FEATURES[0], [-1]),
        lambda: cell_probabilities(cell_network(CellSpec(4, 3)), FEATURES[0], [2]),
    ],
    refine: [
        lambda: refine(MAPS, IMAGE[:5, :5] / 255),
        lambda: refine(MAPS.astype(np.uint8), IMAGE[:5, :5]),
        lambda: refine(MAPS + 7, IMAGE[:5, :5]),
    ],
    refine_batch: [
        lambda: refine_batch(PROBABILITIES, AT_CELLS / 255),
        lambda: refine_batch(PROBABILITIES, IMAGES),
    ],
    refine_exactly: [lambda: refine_exactly(PROBABILITIES, IMAGES, AT_MAP_SIZE)],
    bilateral_kernel: [lambda: bilateral_kernel(AT_CELLS.permute(0, 2, 3, 1), AT_MAP_SIZE)],
    grow_seeds: [
        lambda: grow_seeds(SEEDS[:1], PROBABILITIES, PRESENT),
        lambda: grow_seeds(SEEDS, PROBABILITIES, PRESENT[:1]),
        lambda: grow_seeds(SEEDS, PROBABILITIES, PRESENT.int()),
    ],
    label_image: [
        lambda: label_image(lambda size: np.zeros((2, *size), np.float32), IMAGE / 255, use_crf=False),
        lambda: label_image(lambda size: MAPS, IMAGE, use_crf=False),
    ],
    fuse: [lambda: fuse([View(SEEDS)], (5, 5))],
    transitions: [
        lambda: transitions([MAPS], IMAGE[:5, :5] / 255, Likeness()),
        lambda: transitions([MAPS], None, Likeness()),
        lambda: transitions([MAPS, MAPS[:, :4]], None, Likeness(colour_deviation=None)),
    ],
    walk: [lambda: walk(None, MAPS[0], 1)],
    predict_grid: [
        lambda: predict_grid(SEGMENTER, [IMAGES / 255]),
        lambda: predict_grid(SEGMENTER, [IMAGES[..., :25]]),
        lambda: predict_grid(SEGMENTER, IMAGES),
        lambda: predict_grid(SEGMENTER, [IMAGES, IMAGES[:1]]),
        lambda: predict_grid(SEGMENTER, []),
    ],
    enlarged_probabilities: [lambda: enlarged_probabilities(MAPS[None], (9, 9))],
    label_probabilities: [lambda: label_probabilities(PROBABILITIES[0])],
    seed_loss: [lambda: seed_loss(PROBABILITIES, SEEDS[:1]), lambda: seed_loss(PROBABILITIES, SEEDS.float())],
    full_loss: [lambda: full_loss(PROBABILITIES, SEEDS[:, :4])],
    boundary_loss: [lambda: boundary_loss(PROBABILITIES, PROBABILITIES[:1])],
    segmentation_loss: [
        lambda: learn(images=IMAGES / 255),
        lambda: learn(seeds=SEEDS[:1]),
        lambda: learn(truth=SEEDS.float()),
        lambda: learn(present=PRESENT[:1]),
        lambda: learn(weights=WEIGHTS[:1]),
    ],
    segmentation_step: [
        lambda: segmentation_step(SEGMENTER, SGD, BATCH._replace(weights=WEIGHTS[:1]), LossWeights()),
    ],
    relabelled_batch: [lambda: relabelled_batch(SEGMENTER, BATCH._replace(images=IMAGES / 255))],
}

UNCHECKED = {  # why a wrong array cannot give a wrong result without an error, or who checks it
    "localize and deterministic_maps check what they get": (
        *("compiled.fold_samples", "compiled.sample_maps"),
        *("dense_sampler.fold_samples", "dense_sampler.sample_evidence"),
        *("dense_sampler.expected_evidence", "dense_sampler.expected_score"),
    ),
    "the reference of the tests": (
        *("expansion.expand", "expansion.expand_masks", "expansion.literal_logits", "expansion.literal_maps"),
        *("expansion.expanded_logits", "expansion.expanded_map"),
    ),
    "LabelledCells checks": (
        "cell_classifier.learn_cells",
        "cell_classifier.train_cells",
        "cell_classifier.best_labels",
    ),
    "head_step checks each batch": ("frozen_features.train_head",),
    "grow_seeds checks": ("growing.connected",),
    "takes any tensor": ("gpu_kernels.sent", "segmentation_losses.is_known", "masks.philox4x32"),
    "weights, which are checked by their names and shapes": (
        *("backbones.load_backbone_weights", "backbones.without_classifier"),
        *("published_weights.matched_in_order", "segmenter.load_fc_weights"),
    ),
}


def functions_of_arrays() -> Iterator[tuple[str, Callable]]:
    for module in pkgutil.iter_modules(ficklenet.__path__):
        if module.name.startswith("triton"):  # needs Triton; the functions around it check
            continue
        content = importlib.import_module(f"ficklenet.{module.name}")
        for name, function in vars(content).items():
            if name.startswith("_") or not inspect.isfunction(function) or function.__module__ != content.__name__:
                continue
            kinds = " ".join(str(parameter.annotation) for parameter in inspect.signature(function).parameters.values())
            if any(kind in kinds for kind in ("Tensor", "ndarray", "Batch", "LabelledCells", "View")):
                yield f"{module.name}.{name}", function


def test_every_public_function_of_arrays_is_checked_or_says_why_not():
    unchecked = {name for names in UNCHECKED.values() for name in names}
    found = dict(functions_of_arrays())
    assert unchecked == {name for name, function in found.items() if function not in WRONG}


@pytest.mark.parametrize(
    ("function", "call"),
    [pytest.param(function, call, id=function.__qualname__) for function, calls in WRONG.items() for call in calls],
)
def test_wrong_arrays_are_refused_in_one_sentence(function, call):
    name = "CRF" if function is refine else function.__name__
    with pytest.raises(ValueError, match=f"^{name}: (\\w[\\w ]*: )?given .*, allowed: .*\\.") as refused:
        call()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: resize_square(IMAGE / 255, 97),
            "resize_square: given float64 (6, 7, 3), allowed: a uint8 array (height, width, 3), RGB, with at least one "
            'pixel. If the values are in 0 to 1, give (255 * image).round().astype("uint8").',
        ),
        (
            lambda: resize_square(IMAGE[..., 0], 97),
            "resize_square: given uint8 (6, 7), allowed: a uint8 array (height, width, 3), RGB, with at least one "
            "pixel. If the image is gray, give np.stack([image] * 3, axis=-1).",
        ),
        (
            lambda: train(images=IMAGES / 255),
            "training_step: images_BCHW: given a tensor float32 (2, 3, 33, 33), allowed: a uint8 tensor "
            "(B, 3, 33, 33), RGB. If the values are in 0 to 1, give (255 * image).round().to(torch.uint8).",
        ),
        (
            lambda: map_one(FEATURES, torch.tensor([0])),
            "localize: classes_BS: given a tensor int64 (1,), allowed: a tensor of integers (B, S), such as "
            "torch.tensor([[0]]) for class 0 of one image.",
        ),
        (
            lambda: map_one(FEATURES, torch.tensor([[0]]), "max"),
            'localize: given normalization=\'max\', allowed: Normalization("max") or Normalization("percentile", 90) '
            "of ficklenet.folding.",
        ),
        (
            lambda: seeds(classes=np.array([0, -1])),
            "aggregate: classes: given [0, -1], allowed: class numbers from 0, one for each of the 2 maps, without "
            "empty slots.",
        ),
    ],
)
def test_a_refusal_says_what_was_given_what_is_allowed_and_what_to_do(call, sentence):
    with pytest.raises(ValueError) as refused:
        call()
    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    "image",
    [
        PHOTO / 255,
        PHOTO[..., 0],
        PHOTO[..., 0] / 255,
        PHOTO[..., :1],
        np.concatenate([PHOTO, PHOTO[..., :1]], axis=2),
        PHOTO.transpose(2, 0, 1),
        PHOTO.transpose(2, 0, 1)[None] / 255,
        torch.from_numpy(PHOTO),
        torch.from_numpy(PHOTO).permute(2, 0, 1) / 255,
        Image.fromarray(PHOTO),
    ],
    ids=[
        "float",
        "gray",
        "gray float",
        "gray with an axis",
        "rgba",
        "chw",
        "bchw float",
        "tensor",
        "chw float tensor",
        "pillow",
    ],
)
def test_the_remedy_for_an_image_gives_an_allowed_one(image):
    with pytest.raises(ValueError, match=r"(If .*, g| G)ive .*\.$") as refused:
        resize_square(image, 97)
    given = eval(re.search(r"[gG]ive (.*)\.$", str(refused.value))[1], {"np": np, "torch": torch, "image": image})
    is_gray = np.shape(image) in ((6, 7), (6, 7, 1))
    np.testing.assert_array_equal(given, np.stack([PHOTO[..., 0]] * 3, axis=-1) if is_gray else PHOTO)
    resize_square(given, 97)


@pytest.mark.parametrize(
    "images",
    [
        PHOTOS / 255,
        PHOTOS.numpy(),
        PHOTOS.permute(0, 2, 3, 1).numpy() / 255,
        PHOTOS.permute(0, 2, 3, 1),
    ],
    ids=["float", "array", "bhwc float array", "bhwc"],
)
def test_the_remedy_for_a_batch_gives_an_allowed_one(images):
    with pytest.raises(ValueError, match=r"(If .*, g| G)ive .*\.$") as refused:
        train(images=images)
    given = eval(re.search(r"[gG]ive (.*)\.$", str(refused.value))[1], {"torch": torch, "image": images})
    assert torch.equal(given, PHOTOS)


def test_an_image_that_cannot_be_made_to_fit_has_no_remedy():
    for image in (PHOTO.astype(int), PHOTO[0, :, 0], PHOTO[:0], PHOTO[..., :2], "cat.jpg"):
        with pytest.raises(ValueError, match=r"with at least one pixel\.$"):
            resize_square(image, 97)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_class_numbers_of_every_integer_type_give_the_same_maps(dtype):
    features = torch.rand(1, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    wanted = map_one(features, torch.tensor([[1, 0]])).max_BSHW
    assert torch.equal(map_one(features, torch.tensor([[1, 0]], dtype=dtype)).max_BSHW, wanted)
    found = plain(features, torch.tensor([[1, 0]], dtype=dtype))
    assert torch.equal(found, plain(features, torch.tensor([[1, 0]])))


def test_a_run_s_unset_drop_rate_is_refused_with_the_place_of_the_right_one():
    with pytest.raises(ValueError, match=r"^drop_rate: None given; .* classifier\.spec\.drop_rate\.$"):
        localize(FEATURES, HEAD, torch.tensor([[0]]), KEYS[:1], num_samples=2, drop_rate=None, normalization=MAXIMUM)


def test_texts_are_no_mask_keys():
    with pytest.raises(ValueError, match=r"training_step: keys: given 'a', allowed: numbers, as mask_key of ficklenet"):
        require_one_per_image(2, "training_step", keys=["a", "b"])
