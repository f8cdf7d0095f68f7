"""The step `retrained`: a second segmentation network, trained on the first one's refined predictions."""

from cluster.connect import Connection
from ficklenet.crf import require_pydensecrf
from jobs.run.config_keys import Config
from jobs.run.directory import Run
from jobs.steps.compute import resolved_device
from jobs.steps.networks import require_network
from jobs.training.plan import training_plan
from jobs.training.segmentation_worker import segmentation_worker
from jobs.training.segmenter_job import check_images, frozen_note, require_start_weights, segmentation_fingerprint
from jobs.training.training_job import TrainingJob


def make_job(run: Run, connection: Connection) -> TrainingJob:
    """The retraining.

    Raises:
        NotYet: the first network is not trained.
        ValueError: the first network was trained on all masks, so its predictions add nothing.
    """
    config, manifest = run.config.segmenter, run.manifest()
    require_something_to_relabel(run.config)
    require_network(run, "segmenter", "retrain_segmentation")
    device = resolved_device(config.device, connection, "segmenter.device")
    if device == "cpu":
        require_pydensecrf()
    require_start_weights(run, manifest)
    num_images = check_images(run.config, manifest)
    plan = training_plan("retrained", run.config, num_images)
    return TrainingJob(
        plan=plan,
        worker=segmentation_worker,
        device=device,
        fingerprint=segmentation_fingerprint(run, plan, device, ["segmenter"]),
        keep="last",
        subject=f"{config.backbone}, on the first network's labels,",
        notes=[frozen_note(run.config, manifest, num_images, device)],
    )


def require_something_to_relabel(config: Config) -> None:
    """Refuses to retrain a network that was trained on all masks."""
    if config.segmenter.supervision == "masks":
        raise ValueError(
            "retrain_segmentation: with segmenter.supervision=masks the network was trained on all masks already. "
            "Retraining is only for networks that were trained on seeds."
        )
