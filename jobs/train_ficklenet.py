"""Trains the FickleNet classifier on image-level labels, over one or more workers.

Reads <run>/manifest.parquet, writes <run>/classifier; reads no mask. The same command continues an interrupted
training from its last checkpoint; a finished one says so and does nothing.
"""

from typing import Any

from cluster.connect import Connection
from ficklenet.backbones import require_imagenet_weights
from jobs.backbone_weights import weights_hash
from jobs.classifier_worker import new_classifier, train_worker, training_plan
from jobs.command_line import job_parser, run_main
from jobs.compute import connected, resolved_device, resolved_precision
from jobs.config import Config
from jobs.run import Run, open_run
from jobs.trained_classifier import require_classifier
from jobs.training_data import image_list, validation_images
from jobs.training_job import TrainingJob, run_training_job
from storage.manifest import Manifest

ALGORITHM_VERSION = 1
MANIFEST_COLUMNS = ("image_id", "uri", "labels", "split", "problem")

EXAMPLES = """examples:
  python jobs/train_ficklenet.py --run /data/voc --set classifier.weights=/data/vgg16.pt
  python jobs/train_ficklenet.py --run s3://bucket/voc --set cluster.training_workers=4
"""


def main(arguments: list[str]) -> None:
    parser = job_parser("train_ficklenet", f"{__doc__}\n{EXAMPLES}")
    parser.add_argument("--restart", choices=["classifier"], help="delete this step's results and start it anew")
    given = parser.parse_args(arguments)
    run = open_run(given.run, given.config, given.set)
    run.manifest()  # refused before a Ray is started
    with connected(run.config.cluster) as connection:
        train_classifier(run, connection, restart=given.restart == "classifier", dry_run=given.dry_run)


def train_classifier(run: Run, connection: Connection, *, restart: bool = False, dry_run: bool = False) -> None:
    """Trains, or continues, or says that it is done.

    Args:
        connection: where to train.
        restart: delete what the step has and begin anew.
        dry_run: say what would be done, and do nothing.
    """
    # What to do, and whether it can be done: wrong input is refused before anything is recorded
    config, manifest = run.config.classifier, run.manifest()
    device = resolved_device(config.device, connection)
    num_images = _check_images(run.config, manifest)
    if config.weights == "imagenet":
        require_imagenet_weights(config.backbone, "classifier.weights")  # which the workers download
    else:
        new_classifier(run.config, manifest.class_names)
    num_validation = len(validation_images(manifest, run.config))
    job = TrainingJob(
        script="train_ficklenet",
        plan=training_plan(run.config, num_images),
        worker=train_worker,
        device=device,
        fingerprint=fingerprint(run.config, manifest, device),
        keep=config.keep,
        subject=config.backbone,
        validation=f", {num_validation:,} to validate on" if num_validation else ", none to validate on",
    )
    run_training_job(run, connection, job, restart=restart, dry_run=dry_run)
    if not dry_run:
        require_classifier(run, manifest.class_names)


def _check_images(config: Config, manifest: Manifest) -> int:
    """The number of training images.

    Raises:
        ValueError: there are none, or no validation images where the best epoch is to be kept.
    """
    settings = config.classifier
    num_images = len(image_list(manifest, settings.train_splits, without=settings.val_splits))
    if num_images == 0:
        raise ValueError(
            f"train_ficklenet: no labelled image in the training splits {list(settings.train_splits) or 'given'}; "
            f"the manifest has {sorted(_splits(manifest))}. Set classifier.train_splits."
        )
    if settings.keep == "best" and not validation_images(manifest, config):
        raise ValueError(
            f"classifier.keep: given 'best', but there is no labelled image in the validation splits "
            f"{list(settings.val_splits)}. Set classifier.val_splits, or keep the 'last'."
        )
    return num_images


def fingerprint(config: Config, manifest: Manifest, device: str) -> dict[str, Any]:
    """Everything that changes the trained weights beyond the spread of training."""
    no_influence = {"device", "precision", "loader_workers", "weights", "validate_every"}
    no_influence |= {"keep", "micro_batch_size", "checkpoint_minutes"}
    settings = config.classifier.model_dump(mode="json", exclude=no_influence)
    return {
        "algorithm_version": ALGORITHM_VERSION,
        "manifest": manifest.column_hash(MANIFEST_COLUMNS),
        "seed": config.seed,
        "images": {"input_size": config.images.input_size},
        "classifier": settings,
        "weights": weights_hash(config.classifier.weights, "classifier.weights"),
        "device": device,
        "precision": resolved_precision(config.classifier.precision, device),
    }


def _splits(manifest: Manifest) -> set[str]:
    return {split for batch in manifest.iter_columns(["split"]) for split in batch["split"]}


if __name__ == "__main__":
    from jobs.train_ficklenet import main as imported_main  # so that workers find the functions by import

    run_main(imported_main)
