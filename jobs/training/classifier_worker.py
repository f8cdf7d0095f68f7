"""One worker of the classifier's training: what a step and a validation are, and its share of both."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from cluster.training_context import TrainingContext
from ficklenet.backbones import backbone_geometry, require_backbone_name
from ficklenet.batches import addressed_batches
from ficklenet.classifier import ClassifierSpec, FickleNet, pack_classifier
from ficklenet.classifier_training import PRETRAINED_FACTOR, learning_rate_at, make_optimizer, training_step
from ficklenet.metrics import average_precision
from ficklenet.transforms import normalize
from jobs.run.config_keys import ClassifierConfig, Config
from jobs.run.directory import Run
from jobs.steps.compute import resolved_precision
from jobs.training.backbone_weights import load_weights
from jobs.training.plan import Plan
from jobs.training.training_data import (
    ImageBatch,
    ListedImages,
    TrainingImages,
    ValidationImages,
    collate,
    image_list,
    load_batches,
    loader_processes,
    validation_images,
)
from jobs.training.training_loop import Learner, run_training
from storage.manifest import Manifest


def train_worker(context: TrainingContext, job: dict[str, Any]) -> None:
    """One worker of the training, from its checkpoint or from the beginning."""
    run: Run = job["run"]
    config, manifest = run.config.classifier, run.manifest()
    images = image_list(manifest, run.config.data.train_splits, without=run.config.data.val_splits)
    plan = training_plan(run.config, len(images))

    # 1. The same model on every worker
    torch.manual_seed(run.config.seed)
    classifier = new_classifier(run.config, manifest.class_names)
    classifier.to(context.device).to(memory_format=torch.channels_last)  # a quarter faster, on CPU too
    optimizer = make_optimizer(
        classifier,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        backbone_factor=backbone_factor(config),
        layer_decay=config.layer_learning_rate_decay,
    )
    model = context.wrap(classifier)

    # 2. A step, with this worker's share of the batch
    def step(batch: ImageBatch, number: int) -> Tensor:
        return training_step(
            model,
            optimizer,
            batch.images.to(context.device, non_blocking=True),
            batch.targets.to(context.device, non_blocking=True),
            batch.keys,
            number // plan.epoch_steps,
            batch.weights.to(context.device, non_blocking=True),
            total_weight=min(plan.batch_size, plan.num_images) / context.world_size,
            micro_batch_size=config.micro_batch_size,
            precision=_precision(context, config),
        )

    def batches_of(steps: range) -> Iterator[ImageBatch]:
        addresses = addressed_batches(
            steps, plan.num_images, plan.batch_size, run.config.seed, context.rank, context.world_size
        )
        return _load(context, config, TrainingImages(images, manifest.num_classes, run.config), addresses)

    # 3. The loop
    learner = Learner(
        model=classifier,
        optimizer=optimizer,
        learning_rate=lambda number: learning_rate_at(
            plan.schedule_epoch(number), config.learning_rate, config.halve_every
        ),
        step=step,
        validate=lambda: _validate(context, classifier, manifest, run.config),
        score="val_map",
        write=lambda name, metrics: (job["folder"] / name).write_bytes(
            pack_classifier(classifier, job["about"] | {"metrics": metrics})
        ),
    )
    run_training(context, plan, learner, batches_of)


def training_plan(config: Config, num_images: int) -> Plan:
    """How long the classifier's training is."""
    settings = config.classifier
    return Plan(
        name="classifier",
        section="classifier",
        num_images=num_images,
        batch_size=settings.batch_size,
        configured_epochs=settings.epochs,
        min_steps=settings.min_steps,
        configured_validate_every=settings.validate_every,
        checkpoint_minutes=settings.checkpoint_minutes,
        max_skipped_fraction=config.images.max_skipped_fraction,
    )


def classifier_spec(config: Config, class_names: tuple[str, ...]) -> ClassifierSpec:
    """What the classifier is built by.

    Raises:
        ValueError: there is no such backbone, or its cells do not fill the input.
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
    """The backbone's learning rate as a factor of the head's: as configured, or by what its weights start from."""
    if settings.backbone_learning_rate_factor is not None:
        return settings.backbone_learning_rate_factor
    return 1.0 if settings.weights == "none" else PRETRAINED_FACTOR


def new_classifier(config: Config, class_names: tuple[str, ...]) -> FickleNet:
    """An untrained classifier: backbone weights as configured, a random head."""
    settings = config.classifier
    classifier = FickleNet(classifier_spec(config, class_names))
    load_weights(classifier.backbone, settings.backbone, settings.weights, "classifier.weights")
    classifier.backbone.freeze_stages(settings.frozen_stages)
    return classifier


@torch.inference_mode()
def _validate(context: TrainingContext, classifier: FickleNet, manifest: Manifest, config: Config) -> dict[str, float]:
    """Mean average precision of the expected logits on the validation images, and how many could be read."""
    images = validation_images(manifest, config)
    if not images:
        return {}
    precision, width = _precision(context, config.classifier), manifest.num_classes
    mine, size = range(context.rank, len(images), context.world_size), config.classifier.batch_size
    addresses = [list(mine[start : start + size]) for start in range(0, len(mine), size)]
    logits, targets = [torch.empty(0, width)], [torch.empty(0, width)]
    classifier.eval()
    for batch in _load(context, config.classifier, ValidationImages(images, width, config), addresses):
        inputs = normalize(batch.images.to(context.device, non_blocking=True))
        with torch.autocast(context.device.type, precision, enabled=precision != torch.float32):
            scores = classifier.expected_logits(inputs.contiguous(memory_format=torch.channels_last))
        is_readable = batch.weights > 0
        logits.append(scores.float().cpu()[is_readable])
        targets.append(batch.targets[is_readable])
    classifier.train()
    shares = context.gather((torch.cat(logits), torch.cat(targets)))
    scores, truth = (torch.cat([share[part] for share in shares]) for part in (0, 1))
    return {"val_map": average_precision(scores, truth), "validated": len(truth)}


def _load(
    context: TrainingContext, config: ClassifierConfig, dataset: ListedImages, addresses: Iterable[list[Any]]
) -> Iterator[ImageBatch]:
    num_processes = loader_processes(config.loader_workers, context.device, context.local_world_size)
    return load_batches(dataset, addresses, collate, num_processes=num_processes, device=context.device)


def _precision(context: TrainingContext, config: ClassifierConfig) -> torch.dtype:
    return resolved_precision(config.precision, context.device.type)
