"""What all trainings do alike: open the step, train on Ray or here, keep a network, say how it went."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.connect import Connection
from cluster.training import Worker, train
from cluster.words import plural
from jobs.config import ClusterConfig, training_worker_range
from jobs.dry_run import print_training
from jobs.kept_model import keep_epoch
from jobs.progress import duration
from jobs.run import Run, package_versions, record_run
from jobs.training_log import TrainingLog, described
from jobs.training_loop import Plan
from storage.heartbeat import beating
from storage.steps import Step


@dataclass(frozen=True)
class TrainingJob:
    """One training of a run.

    Attributes:
        script: the job's name, as in jobs/<script>.py.
        plan: its name is that of the step's folder.
        worker: the worker function, which must pickle.
        device: "cpu" or "cuda".
        fingerprint: everything that changes the trained weights beyond the spread of training.
        keep: "last" or "best".
        subject: what is trained, for people: "vgg16".
        validation: on what it is validated, for people: ", 2 to validate on".
    """

    script: str
    plan: Plan
    worker: Worker
    device: str
    fingerprint: Mapping[str, Any]
    keep: str
    subject: str
    validation: str = ""


def run_training_job(
    run: Run, connection: Connection, job: TrainingJob, *, restart: bool = False, dry_run: bool = False
) -> dict[str, Any]:
    """Trains, or continues, or says that it is done; the kept network's metrics, none of a dry run.

    Raises:
        ValueError: more workers than images in a batch, or the step was started with other settings.
    """
    plan, name, cluster = job.plan, job.plan.name, run.config.cluster
    workers = training_worker_range(cluster)
    require_workers(cluster, plan)

    # 1. The step, made or joined
    step, command = Step(run.location / name), run.command(job.script)
    if dry_run:
        step.check_start(job.fingerprint, command, restart=restart)
        print_training(run, connection, job.device, plan, restart=restart)
        return {}
    if restart:
        step.restart()
    step.open(job.fingerprint, command)
    record_run(run, name)
    if (step.location / "complete.json").exists():
        metrics = keep_epoch(step.location, job.keep)
        print(f"{name}: already trained ({described(metrics)}); --restart {name} of {job.script}.py trains anew.")
        return metrics

    # 2. Train; the checkpoints of an interrupted training are found by their place
    images = f"{plural(plan.num_images, 'image')} (labelled, of the training splits){job.validation}"
    epochs = f"{plural(plan.epochs, 'epoch')} of {plan.epoch_in_words}"
    print(f"{name}: {images}; {epochs}; {job.subject} on {job.device}.", flush=True)
    config = run.config.model_dump(mode="json")
    about = {"config": config, "fingerprint": dict(job.fingerprint), "versions": package_versions()}
    with TrainingLog(step.location, name, plan.epochs) as log, beating(step.location, "1-of-1"):
        train(
            job.worker,
            {"run_uri": run.uri, "step": name, "config": config, "about": about},
            num_workers=workers[0] if workers[0] == workers[1] else workers,
            cpus_per_worker=cluster.cpus_per_training_worker,
            use_gpu=job.device == "cuda",
            storage_uri=step.location.uri,
            name="checkpoints",
            autoscaling=cluster.autoscaling,
            in_process=connection.in_process,
            on_report=log.add,
        )

    # 3. The marker comes last: the networks, which rank 0 wrote, are whole
    metrics = keep_epoch(step.location, job.keep)
    kept = f"; epoch {metrics['epoch']}, the best, is kept" if job.keep == "best" else ""
    print(f"{name}: trained in {duration(log.seconds)} ({described(metrics)}){kept}.", flush=True)
    for reason, ids in log.skipped.items():
        print(f"{name}: skipped {len(ids):,}: {reason} ({ids[0]}{', ...' if len(ids) > 1 else ''})")
    return metrics


def require_workers(config: ClusterConfig, plan: Plan) -> None:
    """Refuses more training workers than a batch has images."""
    most, allowed = max(training_worker_range(config)), min(plan.batch_size, plan.num_images)
    if most > allowed:
        raise ValueError(
            f"cluster.training_workers: given {most}, allowed: 1 to {allowed}, as each needs an image of every batch. "
            f"Lower it, or raise {plan.section}.batch_size."
        )
