"""Trains the FickleNet classifier on image-level labels, over one or more workers.

Reads <run>/manifest.parquet, writes <run>/classifier; reads no mask. The same command continues an interrupted
training from its last checkpoint; a finished one says so and does nothing.
"""

import hashlib
import json
import time
from typing import Any

from cluster.connect import Connection
from cluster.training import train
from ficklenet.batches import steps_per_epoch
from jobs.classifier_worker import new_classifier, train_worker
from jobs.command_line import job_parser, run_main
from jobs.compute import connected, resolved_device, resolved_precision
from jobs.config import Config
from jobs.progress import duration
from jobs.run import Run, open_run, record_run
from jobs.trained_classifier import require_classifier
from jobs.training_data import image_list
from storage.location import Location
from storage.manifest import Manifest
from storage.steps import Step

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
        train_classifier(run, connection, restart=given.restart == "classifier")


def train_classifier(run: Run, connection: Connection, *, restart: bool = False) -> None:
    """Trains, or continues, or says that it is done.

    Args:
        connection: where to train.
        restart: delete what the step has and begin anew.
    """
    # 1. What to do
    config, manifest = run.config.classifier, run.manifest()
    device = resolved_device(config.device, connection)
    num_images = len(image_list(manifest, config.train_splits, without=config.val_splits))
    if num_images == 0:
        raise ValueError(
            f"train_ficklenet: no labelled image in the training splits {list(config.train_splits) or 'given'}; "
            f"the manifest has {sorted(_splits(manifest))}. Set classifier.train_splits."
        )

    if config.weights not in ("imagenet", "none"):
        new_classifier(run.config, manifest.class_names)  # wrong weights are refused before anything is recorded

    # 2. The step, made or joined
    step = Step(run.location / "classifier")
    if restart:
        step.restart()
    command = run.command("train_ficklenet")
    step.open(fingerprint(run.config, manifest, device), command)
    record_run(run, "classifier")
    complete = step.location / "complete.json"
    if complete.exists():
        trained = require_classifier(run, manifest.class_names)
        print(f"classifier: already trained ({_named(trained.metrics)}); '{command} --restart classifier' trains anew.")
        return

    # 3. Train; the checkpoints of an interrupted training are found by their place
    print(
        f"classifier: {num_images:,} images, {config.epochs} epochs of "
        f"{steps_per_epoch(num_images, config.batch_size):,} steps, {config.backbone} on {device}.",
        flush=True,
    )
    log = TrainingLog(step.location / "metrics.jsonl", config.epochs)
    train(
        train_worker,
        {"run_uri": run.uri, "config": run.config.model_dump(mode="json"), "device": device},
        num_workers=run.config.cluster.training_workers,
        cpus_per_worker=run.config.cluster.cpus_per_training_worker,
        use_gpu=device == "cuda",
        storage_uri=step.location.uri,
        name="checkpoints",
        in_process=connection.in_process,
        on_report=log.add,
    )

    # 4. The marker comes last: the model, which rank 0 wrote, is whole
    model = (step.location / "model.pt").read_bytes()
    record = {"sha256": hashlib.sha256(model).hexdigest(), "metrics": log.last}
    complete.write_bytes(json.dumps(record, indent=1).encode())
    print(f"classifier: trained in {duration(log.seconds)} ({_named(log.last)}).", flush=True)


class TrainingLog:
    """`metrics.jsonl`: a line of metrics per epoch, kept over relaunches, and printed as it comes."""

    def __init__(self, place: Location, num_epochs: int) -> None:
        self.place, self.num_epochs = place, num_epochs
        self.lines: list[dict[str, Any]] = []
        if place.exists():
            self.lines = [json.loads(line) for line in place.read_bytes().splitlines()]
        self._started, self._new_epochs = time.monotonic(), 0

    @property
    def last(self) -> dict[str, Any]:
        return self.lines[-1] if self.lines else {}

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def add(self, metrics: dict[str, Any]) -> None:
        """Keeps an epoch's metrics; those of an epoch that is trained again replace the earlier ones."""
        self.lines = [line for line in self.lines if line["epoch"] < metrics["epoch"]] + [metrics]
        self.place.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in self.lines))
        self._new_epochs += 1
        left = duration((self.num_epochs - metrics["epoch"]) * self.seconds / self._new_epochs)
        print(
            f"classifier: epoch {metrics['epoch']} of {self.num_epochs} ({_named(metrics)}), about {left} left",
            flush=True,
        )


def fingerprint(config: Config, manifest: Manifest, device: str) -> dict[str, Any]:
    """Everything that changes the trained weights beyond the spread of training."""
    settings = config.classifier.model_dump(mode="json", exclude={"device", "precision", "loader_workers", "weights"})
    return {
        "algorithm_version": ALGORITHM_VERSION,
        "manifest": manifest.column_hash(MANIFEST_COLUMNS),
        "seed": config.seed,
        "images": {"input_size": config.images.input_size},
        "classifier": settings,
        "weights": _weights_hash(config.classifier.weights),
        "device": device,
        "precision": resolved_precision(config.classifier.precision, device),
    }


def _weights_hash(weights: str) -> str:
    if weights in ("imagenet", "none"):
        return weights
    try:
        return hashlib.sha256(Location.parse(weights).read_bytes()).hexdigest()
    except FileNotFoundError:
        raise ValueError(
            f"classifier.weights: no file {weights}; give a .pt state dict, 'imagenet' or 'none'."
        ) from None


def _splits(manifest: Manifest) -> set[str]:
    return {split for batch in manifest.iter_columns(["split"]) for split in batch["split"]}


def _named(metrics: dict[str, float]) -> str:
    names = {"loss": "loss {:.3f}", "val_map": "validation mAP {:.3f}", "images_per_second": "{:.1f} images/s"}
    return ", ".join(text.format(metrics[name]) for name, text in names.items() if name in metrics)


if __name__ == "__main__":
    from jobs.train_ficklenet import main as imported_main  # so that workers find the functions by import

    run_main(imported_main)
