"""One worker of the classifier's training: its share of every step, validation, checkpoints."""

import io
import math
import pickle
import time
from typing import Any

import torch
from torch.utils.data import DataLoader

from cluster.training import TrainingContext
from ficklenet.backbones import imagenet_vgg16_weights, load_backbone_weights
from ficklenet.batches import addressed_batches, steps_per_epoch
from ficklenet.classifier import ClassifierSpec, FickleNet, pack_classifier
from ficklenet.metrics import average_precision
from ficklenet.training import learning_rate_at, make_optimizer, set_learning_rate, training_loss
from ficklenet.transforms import normalize
from jobs.compute import resolved_precision
from jobs.config import Config
from jobs.run import Run
from jobs.training_data import TrainingImages, ValidationImages, collate, image_list
from storage.location import Location
from storage.manifest import Manifest


def train_worker(context: TrainingContext, job: dict[str, Any]) -> None:
    """One worker of the training, from its checkpoint or from the beginning."""
    run = Run(Location(job["run_uri"]), Config.model_validate(job["config"]))
    config, manifest = run.config.classifier, run.manifest()

    # 1. The same model on every worker
    torch.manual_seed(run.config.seed)
    classifier = new_classifier(run.config, manifest.class_names)
    classifier.to(context.device).to(memory_format=torch.channels_last)  # a quarter faster, on CPU too
    optimizer = make_optimizer(
        classifier,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        backbone_factor=config.backbone_learning_rate_factor,
    )
    next_step = _restore(context.latest(), classifier, optimizer)
    model = context.wrap(classifier)

    # 2. This worker's share of every step still to do
    images = image_list(manifest, config.train_splits, without=config.val_splits)
    epoch_steps = steps_per_epoch(len(images), config.batch_size)
    dataset = TrainingImages(images, manifest.num_classes, run.config)
    for epoch in range(next_step // epoch_steps, config.epochs):
        started = time.monotonic()
        steps = range(max(next_step, epoch * epoch_steps), (epoch + 1) * epoch_steps)
        set_learning_rate(optimizer, learning_rate_at(epoch, config.learning_rate, config.halve_every))
        batches = addressed_batches(
            steps, len(images), config.batch_size, run.config.seed, context.rank, context.world_size
        )
        loader = DataLoader(dataset, batch_sampler=list(batches), num_workers=config.loader_workers, collate_fn=collate)
        loss = _train_epoch(context, model, optimizer, loader, epoch, run.config, len(images))

        # 3. At its end: validation, checkpoint, report
        metrics = {"epoch": epoch + 1, "step": (epoch + 1) * epoch_steps, "loss": loss}
        metrics |= _validate(context, classifier, manifest, run.config)
        metrics["images_per_second"] = len(steps) * config.batch_size / (time.monotonic() - started)
        is_last = epoch + 1 == config.epochs
        if is_last and context.rank == 0:
            (run.location / "classifier" / "model.pt").write_bytes(pack_classifier(classifier))
        context.report(metrics, _checkpoint(classifier, optimizer, steps.stop) if context.rank == 0 else None)


def new_classifier(config: Config, class_names: tuple[str, ...]) -> FickleNet:
    """An untrained classifier: backbone weights as configured, a random head."""
    settings = config.classifier
    spec = ClassifierSpec(
        settings.backbone, class_names, settings.kernel_size, settings.drop_rate, config.images.input_size
    )
    classifier = FickleNet(spec)
    if settings.weights == "imagenet":
        load_backbone_weights(classifier.backbone, imagenet_vgg16_weights())
    elif settings.weights != "none":
        load_backbone_weights(classifier.backbone, _read_weights(settings.weights))
    classifier.backbone.freeze_stages(settings.frozen_stages)
    return classifier


def _train_epoch(
    context: TrainingContext,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader,
    epoch: int,
    config: Config,
    num_images: int,
) -> float:
    """Runs the epoch's remaining steps; the mean loss over all workers."""
    precision = getattr(torch, resolved_precision(config.classifier.precision, context.device.type))
    share_of_batch = min(config.classifier.batch_size, num_images) / context.world_size
    total = torch.zeros((), device=context.device)
    model.train()
    for images, targets, keys, weights in loader:
        with torch.autocast(context.device.type, precision, enabled=precision != torch.float32):
            loss = training_loss(
                model,
                images.to(context.device, non_blocking=True),
                targets.to(context.device, non_blocking=True),
                keys,
                epoch,
                weights.to(context.device),
                total_weight=share_of_batch,
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.detach()
    mean = sum(_gathered(context, float(total))) / context.world_size / max(len(loader), 1)
    if not math.isfinite(mean):
        raise ValueError(
            f"train_ficklenet: the loss became {mean} in epoch {epoch + 1}; the last checkpoint is from before. "
            "Lower classifier.learning_rate or classifier.backbone_learning_rate_factor."
        )
    return mean


@torch.inference_mode()
def _validate(context: TrainingContext, classifier: FickleNet, manifest: Manifest, config: Config) -> dict[str, float]:
    """Mean average precision of the expected logits on the validation splits, {} where there are none."""
    images = image_list(manifest, config.classifier.val_splits)
    if not images:
        return {}
    mine = range(context.rank, len(images), context.world_size)
    dataset = ValidationImages(images, manifest.num_classes, config)
    precision = getattr(torch, resolved_precision(config.classifier.precision, context.device.type))
    logits, targets = [], []
    classifier.eval()
    loader = DataLoader(
        dataset,
        sampler=list(mine),
        batch_size=config.classifier.batch_size,
        num_workers=config.classifier.loader_workers,
        collate_fn=collate,
    )
    for inputs, truth, _, weights in loader:
        with torch.autocast(context.device.type, precision, enabled=precision != torch.float32):
            scores = classifier.expected_logits(normalize(inputs.to(context.device)))
        is_readable = weights > 0
        logits.append(scores.float().cpu()[is_readable])
        targets.append(truth[is_readable])
    width = manifest.num_classes
    shares = _gathered(
        context, (torch.cat(logits or [torch.empty(0, width)]), torch.cat(targets or [torch.empty(0, width)]))
    )
    return {"val_map": average_precision(torch.cat([s[0] for s in shares]), torch.cat([s[1] for s in shares]))}


def _gathered(context: TrainingContext, value: Any) -> list[Any]:
    """The value of every worker, on every worker."""
    if context.world_size == 1:
        return [value]
    values: list[Any] = [None] * context.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def _checkpoint(classifier: FickleNet, optimizer: torch.optim.Optimizer, next_step: int) -> bytes:
    buffer = io.BytesIO()
    torch.save(
        {"model": classifier.state_dict(), "optimizer": optimizer.state_dict(), "next_step": next_step},
        buffer,
    )
    return buffer.getvalue()


def _restore(checkpoint: bytes | None, classifier: FickleNet, optimizer: torch.optim.Optimizer) -> int:
    """Continues from a checkpoint, if there is one; the global step to run next."""
    if checkpoint is None:
        return 0
    state = torch.load(io.BytesIO(checkpoint), map_location="cpu", weights_only=True)
    classifier.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["next_step"]


def _read_weights(place: str) -> dict[str, torch.Tensor]:
    try:
        data = Location.parse(place).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"classifier.weights: no file {place}; give a .pt state dict, 'imagenet' or 'none'.") from None
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"classifier.weights: {place} is not a PyTorch state dict ({type(error).__name__}).") from None
