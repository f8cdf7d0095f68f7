"""One worker of the classifier's training: it computes its share of each step and of each validation."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cluster.training_context import TrainingContext
from ficklenet.backbones import backbone_geometry, require_backbone_name
from ficklenet.batches import addressed_batches
from ficklenet.classifier import ClassifierSpec, FickleNet, pack_classifier
from ficklenet.classifier_training import PRETRAINED_FACTOR, learning_rate_at, make_optimizer, training_step
from ficklenet.frozen_features import is_frozen
from ficklenet.metrics import average_precision
from ficklenet.transforms import normalize
from jobs.run.config_keys import ClassifierConfig, Config
from jobs.run.directory import Run
from jobs.steps.compute import resolved_precision
from jobs.training.backbone_weights import load_weights
from jobs.training.frozen_training import FrozenTraining
from jobs.training.image_list import ListedImage, image_list
from jobs.training.plan import Plan, training_plan
from jobs.training.training_data import (
    ImageBatch,
    ListedImages,
    TrainingImages,
    ValidationImages,
    collate,
    load_batches,
    loader_processes,
    validation_images,
)
from jobs.training.training_loop import Learner, run_training
from storage.manifest import Manifest


def train_worker(context: TrainingContext, job: dict[str, Any]) -> None:
    """Runs one worker of the training, from the latest checkpoint or from the beginning."""
    run: Run = job["run"]
    config, manifest = run.config.classifier, run.manifest()
    images = image_list(manifest, run.config.data.train_splits, without=run.config.data.val_splits)
    plan = training_plan("classifier", run.config, len(images))

    # 1. The same model on every worker
    torch.manual_seed(run.config.seed)
    classifier = new_classifier(run.config, manifest.class_names)
    classifier.to(context.device).to(memory_format=torch.channels_last)  # a quarter faster, also on CPUs
    optimizer = make_optimizer(
        classifier,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        backbone_factor=backbone_factor(config),
        layer_decay=config.layer_learning_rate_decay,
    )
    precision = _precision(context, config)
    learn = _learn_features if is_frozen(classifier.backbone) else _learn_images
    passes = learn(context, classifier, optimizer, plan, images, manifest, run.config, precision)

    # 2. The loop
    learner = Learner(
        model=classifier,
        optimizer=optimizer,
        learning_rate=lambda number: learning_rate_at(
            plan.schedule_epoch(number), config.learning_rate, config.halve_every
        ),
        step=passes.step,
        validate=lambda: _metrics(context, passes.validation_scores),
        score="val_map",
        pass_seconds=passes.pass_seconds,
        write=lambda name, metrics: (job["folder"] / name).write_bytes(
            pack_classifier(classifier, job["about"] | {"metrics": metrics})
        ),
    )
    run_training(context, plan, learner, passes.batches_of)


class Passes(NamedTuple):
    """Functions for the loop: `step` and `batches_of` are arguments of `jobs.training.training_loop`.

    `validation_scores` returns the expected logits (n, C) and targets (n, C) of this worker's share of the validation
    images. It is None if there are no validation images. `pass_seconds` is an attribute of the `Learner`.
    """

    step: Callable[[Any, int], Tensor]
    batches_of: Callable[[range], Iterator[Any]]
    validation_scores: Callable[[], tuple[Tensor, Tensor]] | None
    pass_seconds: Callable[[], float] | None = None


def _learn_images(
    context: TrainingContext,
    classifier: FickleNet,
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    images: Sequence[ListedImage],
    manifest: Manifest,
    config: Config,
    precision: torch.dtype,
) -> Passes:
    """For training with crops: every step runs crops of its images through the backbone."""
    model, settings = context.wrap(classifier), config.classifier
    validation = validation_images(manifest, config)

    def step(batch: ImageBatch, number: int) -> Tensor:
        return training_step(
            model,
            optimizer,
            batch.images.to(context.device, non_blocking=True),
            batch.targets.to(context.device, non_blocking=True),
            batch.keys,
            number // plan.epoch_steps,
            batch.weights.to(context.device, non_blocking=True),
            total_weight=plan.step_images / context.world_size,
            micro_batch_size=settings.micro_batch_size,
            precision=precision,
        )

    def batches_of(steps: range) -> Iterator[ImageBatch]:
        addresses = addressed_batches(
            steps, plan.num_images, plan.batch_size, config.seed, context.rank, context.world_size
        )
        return _load(context, settings, TrainingImages(images, manifest.num_classes, config), addresses)

    def scores() -> tuple[Tensor, Tensor]:
        return _validation_scores(context, classifier, validation, manifest.num_classes, config, precision)

    return Passes(step, batches_of, scores if validation else None)


def _learn_features(
    context: TrainingContext,
    classifier: FickleNet,
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    images: Sequence[ListedImage],
    manifest: Manifest,
    config: Config,
    precision: torch.dtype,
) -> Passes:
    """For a frozen backbone: every image runs through it once, and every step trains the head on kept features."""
    validation, total_weight = validation_images(manifest, config), plan.step_images / context.world_size
    training = FrozenTraining(context, classifier, images, validation, manifest.num_classes, config, precision)
    return Passes(
        lambda loaded, number: training.step(optimizer, loaded, number // plan.epoch_steps, total_weight),
        lambda steps: training.batches_of(steps, plan),
        training.validation_scores if validation else None,
        training.passes.take_seconds,
    )


def classifier_spec(config: Config, class_names: tuple[str, ...]) -> ClassifierSpec:
    """The specification from which the classifier is built.

    Raises:
        ValueError: there is no such backbone, or its cells do not fit the input size.
    """
    settings, input_size = config.classifier, config.images.input_size
    require_backbone_name(settings.backbone, "classifier.backbone")
    geometry = backbone_geometry(settings.backbone, settings.output_stride)
    geometry.require_input_size(input_size, "images.input_size")
    kernel_size = settings.kernel_size or geometry.default_kernel_size
    return ClassifierSpec(
        settings.backbone, class_names, kernel_size, settings.drop_rate, input_size, settings.output_stride
    )


def backbone_factor(settings: ClassifierConfig) -> float:
    """The backbone's learning rate divided by the head's: as configured, or chosen by the start weights."""
    if settings.backbone_learning_rate_factor is not None:
        return settings.backbone_learning_rate_factor
    return 1.0 if settings.weights == "none" else PRETRAINED_FACTOR


def new_classifier(config: Config, class_names: tuple[str, ...]) -> FickleNet:
    """An untrained classifier with the configured backbone weights and a random head."""
    settings = config.classifier
    classifier = FickleNet(classifier_spec(config, class_names))
    load_weights(classifier.backbone, settings.backbone, settings.weights, "classifier.weights")
    classifier.backbone.freeze_stages(settings.frozen_stages)
    return classifier


def _metrics(
    context: TrainingContext, validation_scores: Callable[[], tuple[Tensor, Tensor]] | None
) -> dict[str, float]:
    """The mean average precision on the validation images, and how many could be read; {} if there are none."""
    if validation_scores is None:
        return {}
    shares = context.gather(validation_scores())
    scores, truth = (torch.cat([share[part] for share in shares]) for part in (0, 1))
    return {"val_map": average_precision(scores, truth), "validated": len(truth)}


@torch.inference_mode()
def _validation_scores(
    context: TrainingContext,
    classifier: FickleNet,
    images: Sequence[ListedImage],
    num_classes: int,
    config: Config,
    precision: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Expected logits and targets of this worker's share of the images that could be read."""
    mine, size = range(context.rank, len(images), context.world_size), config.classifier.batch_size
    addresses = [list(mine[start : start + size]) for start in range(0, len(mine), size)]
    logits, targets = [torch.empty(0, num_classes)], [torch.empty(0, num_classes)]
    classifier.eval()
    for batch in _load(context, config.classifier, ValidationImages(images, num_classes, config), addresses):
        inputs = normalize(batch.images.to(context.device, non_blocking=True))
        with torch.autocast(context.device.type, precision, enabled=precision != torch.float32):
            scores = classifier.expected_logits(inputs.contiguous(memory_format=torch.channels_last))
        is_readable = batch.weights > 0
        logits.append(scores.float().cpu()[is_readable])
        targets.append(batch.targets[is_readable])
    classifier.train()
    return torch.cat(logits), torch.cat(targets)


def _load(
    context: TrainingContext, config: ClassifierConfig, dataset: ListedImages, addresses: Iterable[list[Any]]
) -> Iterator[ImageBatch]:
    num_processes = loader_processes(config.loader_workers, context.device, context.local_world_size)
    return load_batches(dataset, addresses, collate, num_processes=num_processes, device=context.device)


def _precision(context: TrainingContext, config: ClassifierConfig) -> torch.dtype:
    return resolved_precision(config.precision, context.device.type)
