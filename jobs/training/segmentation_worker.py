"""One worker of a segmentation network's training or retraining: it computes its share of each step."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cluster.training_context import TrainingContext
from ficklenet.backbones import backbone_geometry, require_backbone_name
from ficklenet.batches import addressed_batches, keyed_generator
from ficklenet.segmentation_training import (
    LossWeights,
    Schedule,
    default_learning_rate,
    learning_rate_at,
    make_optimizer,
    relabelled_batch,
    segmentation_step,
)
from ficklenet.segmenter import (
    Segmenter,
    SegmenterSpec,
    default_dilations,
    load_fc_weights,
    logits_geometry,
    pack_segmenter,
)
from ficklenet.training_crf import Map
from jobs.run.config_keys import Config
from jobs.run.directory import Run
from jobs.steps.compute import resolved_precision
from jobs.steps.networks import load_segmenter
from jobs.training.backbone_weights import load_weights
from jobs.training.foreground import foreground_shares
from jobs.training.frozen_segmentation import FrozenBackbone, have_the_same_weights, trains_only_the_head
from jobs.training.plan import training_plan
from jobs.training.segmentation_data import LoadedBatch, SegmentationImages, collate, training_images
from jobs.training.training_data import load_batches, loader_processes
from jobs.training.training_loop import Learner, run_training


def segmentation_worker(context: TrainingContext, job: dict[str, Any]) -> None:
    """Runs one worker of the training, from the latest checkpoint or from the beginning."""
    run: Run = job["run"]
    config, manifest = run.config.segmenter, run.manifest()
    images = training_images(manifest, run.config)
    plan = training_plan(job["step"], run.config, len(images))
    precision = resolved_precision(config.precision, context.device.type)

    # 1. The same model on every worker
    torch.manual_seed(run.config.seed)
    segmenter = new_segmenter(run, manifest.class_names).train()
    segmenter.to(context.device).to(memory_format=torch.channels_last)
    schedule: Schedule = "steps" if plan.name == "segmenter" and config.supervision == "seeds" else "poly"
    base_rate = config.learning_rate or default_learning_rate(config.backbone, schedule)
    optimizer = make_optimizer(
        segmenter,
        learning_rate=base_rate,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_learning_rate_decay,
    )
    model = context.wrap(segmenter)
    teacher = load_segmenter(run).to(context.device) if plan.name == "retrained" else None
    is_frozen = trains_only_the_head(segmenter)
    frozen = FrozenBackbone(context, plan.name, segmenter, len(images), config, precision) if is_frozen else None
    teacher_uses_features = teacher is not None and have_the_same_weights(teacher.backbone, segmenter.backbone)

    with image_map(context.device, run.config.cluster.cpus_per_training_worker or 1) as map_images:
        # 2. A step, with this worker's share of the batch
        def step(loaded: LoadedBatch, number: int) -> Tensor:
            batch = loaded.batch.to(context.device)
            if frozen is not None:
                batch = frozen.with_features(loaded._replace(batch=batch))
            if teacher is not None:
                batch = relabelled_batch(
                    teacher,
                    batch,
                    uses_features=teacher_uses_features,
                    micro_batch_size=config.micro_batch_size,
                    precision=precision,
                    map_images=map_images,
                )
            torch.manual_seed(_dropout_seed(run.config.seed, number, context.rank))  # so that a resume draws the same
            return segmentation_step(
                model,
                optimizer,
                batch,
                loss_weights(run.config, is_relabelled=teacher is not None),
                total_weight=min(plan.batch_size, plan.num_images) / context.world_size,
                micro_batch_size=config.micro_batch_size,
                precision=precision,
                crf_energy=config.crf_energy,
                map_images=map_images,
            )

        def batches_of(steps: range) -> Iterator[LoadedBatch]:
            addresses = addressed_batches(
                steps, plan.num_images, plan.batch_size, run.config.seed, context.rank, context.world_size
            )
            num_processes = loader_processes(config.loader_workers, context.device, context.local_world_size)
            dataset = SegmentationImages(run, images, manifest, uses_seeds=teacher is None)
            return load_batches(dataset, addresses, collate, num_processes=num_processes, device=context.device)

        def shares() -> dict[str, float]:
            dataset = SegmentationImages(run, images, manifest)
            return foreground_shares(context, segmenter, dataset, precision) if teacher is None else {}

        # 3. The loop; there is no validation, because it would read masks: evaluate does it
        learner = Learner(
            model=segmenter,
            optimizer=optimizer,
            learning_rate=lambda number: learning_rate_at(number, plan.steps, base_rate, schedule),
            step=step,
            validate=shares,
            score="",
            pass_seconds=frozen.passes.take_seconds if frozen else None,
            write=lambda name, metrics: (job["folder"] / name).write_bytes(
                pack_segmenter(segmenter, job["about"] | {"metrics": metrics})
            ),
        )
        run_training(context, plan, learner, batches_of)


def segmenter_spec(config: Config, class_names: tuple[str, ...]) -> SegmenterSpec:
    """The specification from which the segmentation network is built.

    Raises:
        ValueError: there is no such backbone, its cells do not fit the input size, or it does not fit the head.
    """
    settings, input_size = config.segmenter, config.images.input_size
    backbone, output_stride, head = settings.backbone, settings.output_stride, settings.head
    require_backbone_name(backbone, "segmenter.backbone")
    backbone_geometry(backbone, output_stride).require_input_size(input_size, "images.input_size")
    logits_geometry(backbone, output_stride, head, key="segmenter.head")
    dilations = settings.dilations or default_dilations(backbone, output_stride, head)
    return SegmenterSpec(backbone, class_names, dilations, input_size, output_stride, head)


def new_segmenter(run: Run, class_names: tuple[str, ...]) -> Segmenter:
    """An untrained network: the configured backbone weights, fc6 and fc7 if these include them, else a random head."""
    settings = run.config.segmenter
    segmenter = Segmenter(segmenter_spec(run.config, class_names))
    given = load_weights(segmenter.backbone, settings.backbone, settings.weights, "segmenter.weights", run)
    load_fc_weights(segmenter.head, given)
    segmenter.backbone.freeze_stages(settings.frozen_stages)
    return segmenter


def loss_weights(config: Config, *, is_relabelled: bool = False) -> LossWeights:
    """The weight of each loss under the configured supervision, or in retraining."""
    if is_relabelled or config.segmenter.supervision == "masks":
        return LossWeights(seed=0.0, boundary=0.0, full=1.0)
    return LossWeights(full=config.segmenter.full_loss_weight)


@contextmanager
def image_map(device: torch.device, num_cpus: int) -> Iterator[Map]:
    """Runs the CRFs of a batch on CPUs: `map` on one CPU, or one process per CPU if the worker has several."""
    if device.type != "cpu" or num_cpus == 1:
        yield map
        return
    with ProcessPoolExecutor(num_cpus, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool.map


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    return int(keyed_generator(seed, "dropout", step, rank).integers(2**63))
