"""Trains a second segmentation network on what the first one predicts of the training images (DSRG's retraining).

Reads <run>/segmenter and the images, writes <run>/retrained, with the first training's settings. What is learnt is the
first network's prediction, refined by the CRF at map size, among the image's labels; masks of the strong splits stay
what they are. On small sets this plain cross-entropy wants more epochs than the balanced loss on seeds: give
segmenter.epochs. predict_masks.py uses it where predictions.network=retrained says so. Optional.
"""

from typing import Any

from cluster.connect import Connection
from ficklenet.crf import require_pydensecrf
from jobs.command_line import job_parser, run_main
from jobs.compute import connected, resolved_device
from jobs.config import Config
from jobs.run import Run, open_run
from jobs.segmentation_worker import segmentation_plan, segmentation_worker
from jobs.train_segmentation import check_images, fingerprint, require_start_weights
from jobs.trained_segmenter import require_segmenter
from jobs.training_job import TrainingJob, run_training_job

EXAMPLES = """examples:
  python jobs/retrain_segmentation.py --run /data/voc
  python jobs/retrain_segmentation.py --run /data/small --set segmenter.epochs=40
  python jobs/predict_masks.py --run /data/voc --set predictions.network=retrained --restart predictions
"""


def main(arguments: list[str]) -> None:
    parser = job_parser("retrain_segmentation", f"{__doc__}\n{EXAMPLES}")
    parser.add_argument("--restart", choices=["retrained"], help="delete this step's results and start it anew")
    given = parser.parse_args(arguments)
    run = open_run(given.run, given.config, given.set)
    require_segmenter(run, run.manifest().class_names, "retrain_segmentation")  # before a Ray is started
    with connected(run.config.cluster) as connection:
        retrain_segmenter(run, connection, restart=given.restart == "retrained", dry_run=given.dry_run)


def retrain_segmenter(
    run: Run, connection: Connection, *, restart: bool = False, dry_run: bool = False
) -> dict[str, Any]:
    """Trains, or continues, or says that it is done; arguments and result as of `train_segmenter`.

    Raises:
        ValueError: there is no first network, or it learnt all masks and has nothing to add to them.
    """
    config, manifest = run.config.segmenter, run.manifest()
    require_something_to_teach(run.config)
    teacher = require_segmenter(run, manifest.class_names, "retrain_segmentation")
    device = resolved_device(config.device, connection)
    if device == "cpu":
        require_pydensecrf()
    require_start_weights(run, manifest)
    job = TrainingJob(
        script="retrain_segmentation",
        plan=segmentation_plan(run.config, check_images(run.config, manifest), "retrained"),
        worker=segmentation_worker,
        device=device,
        fingerprint=fingerprint(run, manifest, device) | {"seeds": None, "teacher": teacher.sha256},
        keep="last",
        subject=f"{config.backbone}, taught by the first network,",
    )
    return run_training_job(run, connection, job, restart=restart, dry_run=dry_run)


def require_something_to_teach(config: Config) -> None:
    """Refuses to retrain a network that learnt all masks."""
    if config.segmenter.supervision == "masks":
        raise ValueError(
            "retrain_segmentation: segmenter.supervision=masks learns all there is to learn; retraining is for "
            "networks that learnt seeds."
        )


if __name__ == "__main__":
    from jobs.retrain_segmentation import main as imported_main  # so that workers find the functions by import

    run_main(imported_main)
