"""The step `segmenter`: the segmentation network trained on seeds, on masks, or on both."""

from typing import Any

import numpy as np

from cluster.connect import Connection
from ficklenet.backbones import require_imagenet_weights
from ficklenet.crf import require_pydensecrf
from ficklenet.segmenter import Segmenter
from jobs.maps.stored_geometry import stored_geometry
from jobs.run.config_keys import Config
from jobs.run.directory import Run
from jobs.run.fingerprints import step_fingerprint
from jobs.steps.compute import precision_name, resolved_device, resolved_precision
from jobs.steps.finished import require_finished
from jobs.steps.networks import require_network
from jobs.training.backbone_weights import weights_hash
from jobs.training.frozen_segmentation import features_shape, trains_only_the_head
from jobs.training.kept_features import features_in_words
from jobs.training.plan import Plan, training_plan
from jobs.training.segmentation_data import training_images
from jobs.training.segmentation_worker import (
    new_segmenter,
    segmentation_worker,
    segmenter_spec,
)
from jobs.training.training_job import TrainingJob
from jobs.training.training_warnings import background_warning
from storage.manifest import Manifest

ALGORITHM_VERSION = 4


def make_job(run: Run, connection: Connection) -> TrainingJob:
    """The segmentation network's training.

    Raises:
        NotYet: the seeds are not finished.
        ValueError: there is nothing to train on, or the weights cannot be used.
    """
    config, manifest = run.config.segmenter, run.manifest()
    device = resolved_device(config.device, connection, "segmenter.device")
    num_images = check_images(run.config, manifest)
    learns_seeds = config.supervision == "seeds"
    if learns_seeds:
        _require_seeds(run, manifest)
        if device == "cpu":
            require_pydensecrf()
    require_start_weights(run, manifest)
    plan = training_plan("segmenter", run.config, num_images)
    return TrainingJob(
        plan=plan,
        worker=segmentation_worker,
        device=device,
        fingerprint=segmentation_fingerprint(run, plan, device, ["seeds"] if learns_seeds else []),
        keep="last",
        subject=f"{config.backbone}, {_named_supervision(run.config)},",
        notes=[frozen_note(run.config, manifest, num_images, device)],
        verdict=lambda metrics: background_warning("segmenter", metrics, config),
    )


def frozen_note(config: Config, manifest: Manifest, num_images: int, device: str) -> str:
    """What it costs to keep the features of a backbone that is frozen as a whole; "" if they are not kept."""
    shape = frozen_shape(config, manifest)
    return features_in_words("segmenter", config, shape, 2 * num_images, device)[0] if shape else ""


def frozen_shape(config: Config, manifest: Manifest) -> tuple[int, int, int] | None:
    """(K, H, W) of an image's features if those of the frozen backbone are kept; else None."""
    if config.segmenter.frozen_stages == 0:
        return None
    segmenter = Segmenter(segmenter_spec(config, manifest.class_names))
    segmenter.backbone.freeze_stages(config.segmenter.frozen_stages)
    return features_shape(segmenter) if trains_only_the_head(segmenter) else None


def segmentation_fingerprint(run: Run, plan: Plan, device: str, upstream: list[str]) -> dict[str, Any]:
    """Everything that changes the trained weights by more than the spread between trainings.

    Args:
        plan: the plan of the step "segmenter" or "retrained".
        upstream: the step that made the labels to train on.
    """
    config = run.config
    starts_from_classifier = config.segmenter.weights == "classifier"
    return step_fingerprint(
        run,
        plan.name,
        algorithm_version=ALGORITHM_VERSION,
        upstream=[*upstream, "classifier"] if starts_from_classifier else upstream,
        seed=config.seed,
        images={"input_size": config.images.input_size},
        weights=weights_hash(config.segmenter.weights, "segmenter.weights"),
        device=device,
        precision=precision_name(resolved_precision(config.segmenter.precision, device)),
        **plan.fingerprint,
    )


def _named_supervision(config: Config) -> str:
    if config.segmenter.supervision == "masks":
        return "fully supervised"
    strong = ", ".join(config.segmenter.strong_splits)
    return f"semi-supervised by the masks of {strong}" if strong else "weakly supervised"


def require_start_weights(run: Run, manifest: Manifest) -> None:
    """Refuses weights that the network cannot start with."""
    config = run.config.segmenter
    if config.weights == "classifier":
        require_network(run, "classifier", "train_segmentation")
    segmenter_spec(run.config, manifest.class_names)
    if config.weights == "imagenet":
        require_imagenet_weights(config.backbone, "segmenter.weights")  # the workers download them
    else:
        new_segmenter(run, manifest.class_names)


def check_images(config: Config, manifest: Manifest) -> int:
    """The number of training images.

    Raises:
        ValueError: there are none; or masks are needed, and no training image has one.
    """
    settings = config.segmenter
    images = training_images(manifest, config)
    if not images:
        what = "labelled image with a mask" if settings.supervision == "masks" else "labelled image"
        raise ValueError(
            f"train_segmentation: no {what} in the training splits {list(config.data.train_splits) or 'given'}. "
            "Set data.train_splits."
        )
    if settings.strong_splits and settings.supervision == "seeds" and not images.has_masks():
        raise ValueError(
            f"segmenter.strong_splits: given {', '.join(settings.strong_splits)}, which has no training image with a "
            "mask. Name another split, or prepare the manifest with masks."
        )
    return len(images)


def _require_seeds(run: Run, manifest: Manifest) -> None:
    """Refuses seeds that are not finished, that do not fit the network's cells, or that have no class."""
    finished, store = require_finished(run, "seeds", "train_segmentation"), run.seeds()
    spec, geometry = segmenter_spec(run.config, manifest.class_names), stored_geometry(store)
    if store.grid != (geometry.grid_size(spec.input_size),) * 2 or not spec.geometry.refines(geometry):
        raise ValueError(
            f"segmenter.backbone: the seeds are {store.grid[0]} x {store.grid[1]} cells of {geometry.in_words}, but "
            f"{spec.backbone} at images.input_size = {spec.input_size} has {spec.grid[0]} x {spec.grid[1]} of "
            f"{spec.geometry.in_words}. Use the size that the maps were made with, and a segmenter.backbone and "
            "segmenter.output_stride with the same cells as the classifier, or with a half or a quarter of the stride."
        )
    rows = training_images(manifest, run.config).rows
    num_background = num_unknown = 0
    for unit in finished.units:
        mine = rows[slice(*np.searchsorted(rows, (unit.start, unit.stop)))] - unit.start
        seeds = store.read_unit(unit)[mine]
        if ((seeds > 0) & (seeds <= manifest.num_classes)).any():
            return
        has_background = (seeds == 0).any(axis=(1, 2))  # other images have no maps
        num_background += int((seeds == 0).sum())
        num_unknown += int((seeds[has_background] > 0).sum())
    is_background = num_background > 99 * num_unknown
    raise ValueError(
        f"train_segmentation: no training image has a seed of a class. {_seeds_remedy(run, manifest, is_background)}"
    )


def _seeds_remedy(run: Run, manifest: Manifest, is_background: bool) -> str:
    """What the person can do so that the classes get seeds.

    Args:
        is_background: all cells are background, so another `seeds.theta` would change nothing.
    """
    has_saliency = any(uri for batch in manifest.iter_columns(["saliency_uri"]) for uri in batch["saliency_uri"])
    if not is_background:
        what, setting = "Lower seeds.theta", "seeds.theta=..."
    elif has_saliency and run.config.seeds.background_cue == "saliency":
        what = (
            "All cells are background, because the saliency maps are below seeds.saliency_threshold. Correct these "
            "maps (255 is the most salient) and prepare the run again, or take the background from the maps alone"
        )
        setting = "seeds.background_cue=evidence"
    else:
        what = "All cells are background, because all evidence is below seeds.evidence_threshold. Lower it"
        setting = "seeds.evidence_threshold=..."
    return f"{what}: '{run.step_command('seeds', '--restart', 'seeds', '--set', setting)}'."
