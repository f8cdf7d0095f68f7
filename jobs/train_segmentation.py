"""Trains the segmentation network on seeds, over one or more workers.

Reads <run>/manifest.parquet and <run>/seeds, writes <run>/segmenter. Reads no mask but those of the strong splits
(semi-supervised), or all and no seeds with segmenter.supervision=masks (the upper bound). The same command continues an
interrupted training from its last checkpoint; a finished one says so and does nothing.
"""

from typing import Any

from cluster.connect import Connection
from ficklenet.backbones import grid_size, require_imagenet_weights
from ficklenet.crf import require_pydensecrf
from jobs.backbone_weights import weights_hash
from jobs.command_line import job_parser, run_main
from jobs.compute import connected, resolved_device, resolved_precision
from jobs.config import Config
from jobs.run import Run, open_run
from jobs.segmentation_data import seeds_location, training_images
from jobs.segmentation_worker import new_segmenter, segmentation_plan, segmentation_worker
from jobs.trained_classifier import require_classifier
from jobs.training_job import TrainingJob, run_training_job
from storage.manifest import Manifest
from storage.seed_store import SeedStore
from storage.steps import Step, require_complete
from storage.units import plan_units

ALGORITHM_VERSION = 2
MANIFEST_COLUMNS = ("image_id", "uri", "labels", "split", "problem")

EXAMPLES = """examples:
  python jobs/train_segmentation.py --run /data/voc --set segmenter.weights=/data/vgg16.pt
  python jobs/train_segmentation.py --run /data/voc --strong-split train           semi-supervised
  python jobs/train_segmentation.py --run s3://bucket/voc --set segmenter.dilations=6,12,18,24
"""


def main(arguments: list[str]) -> None:
    parser = job_parser("train_segmentation", f"{__doc__}\n{EXAMPLES}")
    parser.add_argument(
        "--strong-split",
        action="append",
        default=[],
        metavar="NAME",
        help="a split whose masks are learnt too; may be repeated; as segmenter.strong_splits=NAME,...",
    )
    parser.add_argument("--restart", choices=["segmenter"], help="delete this step's results and start it anew")
    given = parser.parse_args(arguments)
    strong = [f"segmenter.strong_splits={','.join(given.strong_split)}"] if given.strong_split else []
    run = open_run(given.run, given.config, [*given.set, *strong])
    run.manifest()  # refused before a Ray is started
    with connected(run.config.cluster) as connection:
        train_segmenter(run, connection, restart=given.restart == "segmenter", dry_run=given.dry_run)


def train_segmenter(
    run: Run, connection: Connection, *, restart: bool = False, dry_run: bool = False
) -> dict[str, Any]:
    """Trains, or continues, or says that it is done; the network's metrics.

    Args:
        connection: where to train.
        restart: delete what the step has and begin anew.
        dry_run: say what would be done, and do nothing.
    """
    # What to do, and whether it can be done: wrong input is refused before anything is recorded
    config, manifest = run.config.segmenter, run.manifest()
    device = resolved_device(config.device, connection)
    num_images = check_images(run.config, manifest)
    if config.supervision == "seeds":
        _require_seeds(run, manifest)
        if device == "cpu":
            require_pydensecrf()
    require_start_weights(run, manifest)
    job = TrainingJob(
        script="train_segmentation",
        plan=segmentation_plan(run.config, num_images),
        worker=segmentation_worker,
        device=device,
        fingerprint=fingerprint(run, manifest, device),
        keep="last",
        subject=f"{config.backbone}, {_named_supervision(run.config)},",
    )
    return run_training_job(run, connection, job, restart=restart, dry_run=dry_run)


def fingerprint(run: Run, manifest: Manifest, device: str) -> dict[str, Any]:
    """Everything that changes the trained weights beyond the spread of training."""
    config, settings = run.config, run.config.segmenter
    no_influence = {"device", "precision", "loader_workers", "weights", "micro_batch_size", "checkpoint_minutes"}
    columns = [*MANIFEST_COLUMNS, "mask_uri"] if _reads_masks(config) else MANIFEST_COLUMNS
    return {
        "algorithm_version": ALGORITHM_VERSION,
        "manifest": manifest.column_hash(columns),
        "seed": config.seed,
        "images": {"input_size": config.images.input_size},
        "splits": {"train": list(config.classifier.train_splits), "val": list(config.classifier.val_splits)},
        "segmenter": settings.model_dump(mode="json", exclude=no_influence),
        "weights": weights_hash(settings.weights, "segmenter.weights", run),
        "seeds": Step(run.location / "seeds").fingerprint() if settings.supervision == "seeds" else None,
        "device": device,
        "precision": resolved_precision(settings.precision, device),
    }


def _reads_masks(config: Config) -> bool:
    return config.segmenter.supervision == "masks" or bool(config.segmenter.strong_splits)


def _named_supervision(config: Config) -> str:
    if config.segmenter.supervision == "masks":
        return "fully supervised"
    strong = ", ".join(config.segmenter.strong_splits)
    return f"semi-supervised by the masks of {strong}" if strong else "weakly supervised"


def require_start_weights(run: Run, manifest: Manifest) -> None:
    """Refuses weights that a network cannot begin with."""
    config = run.config.segmenter
    if config.weights == "classifier":
        require_classifier(run, manifest.class_names)
    if config.weights == "imagenet":
        require_imagenet_weights(config.backbone, "segmenter.weights")  # which the workers download
    else:
        new_segmenter(run, manifest.class_names)


def check_images(config: Config, manifest: Manifest) -> int:
    """The number of training images.

    Raises:
        ValueError: there are none, or none with a mask where masks are asked for.
    """
    settings = config.segmenter
    images = training_images(manifest, config)
    if not images:
        what = "labelled image with a mask" if settings.supervision == "masks" else "labelled image"
        raise ValueError(
            f"train_segmentation: no {what} in the training splits {list(config.classifier.train_splits) or 'given'}. "
            "Set classifier.train_splits."
        )
    if settings.strong_splits and settings.supervision == "seeds" and not any(image.mask_uri for image in images):
        raise ValueError(
            f"segmenter.strong_splits: given {', '.join(settings.strong_splits)}, which has no training image with a "
            "mask. Name another split, or prepare the manifest with masks."
        )
    return len(images)


def _require_seeds(run: Run, manifest: Manifest) -> None:
    """Refuses seeds that are not finished, of another size, or without any class."""
    config, units = run.config, plan_units(manifest.num_images, run.config.unit_size)
    command = run.command("aggregate_seeds")
    require_complete(Step(run.location / "seeds"), units, manifest, "train_segmentation", command)
    store, side = SeedStore.open(seeds_location(run.location)), grid_size(config.images.input_size)
    if store.grid != (side, side):
        raise ValueError(
            f"train_segmentation: the seeds are {store.grid[0]} x {store.grid[1]}, images.input_size = "
            f"{config.images.input_size} needs {side} x {side}. Use the size that the maps were made with."
        )
    rows = {image.row for image in training_images(manifest, config)}
    for unit in units:
        mine = [row - unit.start for row in range(unit.start, unit.stop) if row in rows]
        seeds = store.read_unit(unit)[mine]
        if ((seeds > 0) & (seeds <= manifest.num_classes)).any():
            return
    raise ValueError(
        "train_segmentation: no training image has a seed of a class. Lower seeds.theta: "
        f"'{command} --restart seeds --set seeds.theta=...'."
    )


if __name__ == "__main__":
    from jobs.train_segmentation import main as imported_main  # so that workers find the functions by import

    run_main(imported_main)
