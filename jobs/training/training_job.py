"""The driver of all trainings: it opens the step, trains on Ray or in this process, and keeps a network."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.connect import Connection, resources_if_running
from cluster.errors import ClusterError
from cluster.training import Worker, is_begun_on_ray, train
from cluster.training_context import Metrics, require_local_folder
from cluster.words import plural
from jobs.run.config_keys import ClusterConfig, training_worker_range
from jobs.run.directory import Run, record_run
from jobs.run.steps import BY_NAME
from jobs.run.training_record import read_complete, read_epochs, read_training
from jobs.run.versions import package_versions
from jobs.steps.added_images import added_in_words, as_trained
from jobs.steps.compute import note_on_cpus, require_own_gpu
from jobs.steps.dry_run import NOTHING, print_deletion
from jobs.steps.launch import LaunchOptions
from jobs.steps.progress import duration, size
from jobs.steps.restarted import restarted
from jobs.steps.unit_dry_run import describe_connection
from jobs.steps.waiting import notices
from jobs.training.backbone_weights import fetch_imagenet_weights
from jobs.training.kept_network import keep_epoch, will_change
from jobs.training.one_at_a_time import wait_until_idle
from jobs.training.plan import Plan
from jobs.training.training_log import TrainingLog, described
from storage.heartbeat import beating
from storage.location import Location
from storage.text import printable

CHECKPOINTS = "checkpoints"  # the subfolder of a training's checkpoints


@dataclass(frozen=True)
class TrainingJob:
    """One training of a run.

    Attributes:
        plan: the length of the training; its name is the step's name.
        worker: the worker function, which can be pickled.
        device: "cpu" or "cuda".
        fingerprint: everything that changes the trained weights by more than the spread between trainings.
        keep: "last" or "best".
        subject: what is trained, for people, such as "vgg16".
        validation: the validation images, for people, such as ", 2 for validation".
        notes: sentences to print before the training starts, and in a dry run.
        watch: called once for each epoch; returns a warning about the epoch's metrics, or ''.
        verdict: returns a warning about the metrics of the kept network, or ''.
    """

    plan: Plan
    worker: Worker
    device: str
    fingerprint: Mapping[str, Any]
    keep: str
    subject: str
    validation: str = ""
    notes: Sequence[str] = ()
    watch: Callable[[Metrics], str] | None = None
    verdict: Callable[[Mapping[str, Any]], str] | None = None


def run_training_job(run: Run, connection: Connection, job: TrainingJob, options: LaunchOptions) -> None:
    """Trains, continues a training, or prints that it is done. While another launch trains this step, it waits.

    Raises:
        ValueError: there are more workers than images in a batch, or the step was started with other settings.
    """
    plan, name = job.plan, job.plan.name
    require_workers(run.config.cluster, plan)

    # 1. Wait for another launch that trains it, then create or open the step
    step, command = run.step(name), run.step_command(name)
    fingerprint = job.fingerprint if options.restart else as_trained(step, job.fingerprint)
    if not options.restart:
        step.require_record(f"{command} --restart {name}")
    step.check_start(fingerprint, command, restart=options.restart)
    _require_start(run, connection, job, options)  # before a restart deletes anything
    if options.dry_run:
        _print_dry_run(run, connection, job, options)
        return
    if not options.restart:  # a restart is refused while another launch works on the step
        wait_until_idle(step.location, name)
    elif num_bytes := step.location.usage()[1]:
        print(f"{name}: --restart deletes the network and checkpoints of the earlier training, {size(num_bytes)}.")
    start_id = step.open(fingerprint, command, restart=options.restart)
    with restarted(options.restart), beating(step.location, options.launch, start_id=start_id):
        record_run(run, name)
        folder = step.data(start_id)
        if read_complete(folder):
            _print_already_trained(run, job, folder)
        else:
            _train(run, connection, job, folder)


def _require_start(run: Run, connection: Connection, job: TrainingJob, options: LaunchOptions) -> None:
    """Refuses a training that cannot start, unless it is finished already.

    Raises:
        ClusterError: the workers do not fit the cluster.
        ValueError: a training without Ray would need a local folder, there is no GPU for it, or its ImageNet weights
            cannot be downloaded.
    """
    cluster, name, step = run.config.cluster, job.plan.name, run.step(job.plan.name)
    folder = step.location if options.restart else step.data()  # a damaged record or marker does not stop a restart
    if not options.restart and read_complete(folder):
        return
    key = BY_NAME[name].device_key
    if is_trained_here(cluster, connection, folder, is_new=options.restart):
        require_folder_without_ray(folder)
        if job.device == "cuda":
            require_own_gpu(key)
    elif not cluster.autoscaling:
        num_workers = training_worker_range(cluster)[0]
        there = resources_if_running() or connection  # nodes may have come or gone since the launch connected
        there.require(
            cpus=num_workers * (cluster.cpus_per_training_worker or 1),
            gpus=num_workers if job.device == "cuda" else 0,
            purpose=plural(num_workers, "training worker"),
            device_key=key,
        )
    settings = getattr(run.config, job.plan.section)
    is_of_this_machine = connection.in_process or connection.is_to_start  # else the workers download them
    if options.restart and not options.dry_run and is_of_this_machine and settings.weights == "imagenet":
        fetch_imagenet_weights(settings.backbone, f"{job.plan.section}.weights")


def require_folder_without_ray(folder: Location) -> None:
    """Refuses a training in this process that would keep its checkpoints elsewhere than in a local folder.

    Raises:
        ValueError: it is not a local folder; what the user gave is the reason, not the cluster.
    """
    try:
        require_local_folder(folder.uri)
    except ClusterError as error:
        raise ValueError(str(error)) from error


def _print_already_trained(run: Run, job: TrainingJob, folder: Location) -> None:
    name = job.plan.name
    metrics = keep_epoch(folder, name, job.keep)
    command = run.step_command(name, "--restart", name)
    print(f"{name}: already trained ({described(metrics)}); '{command}' trains it again.")
    if added := added_in_words(run, name):
        print(f"{name}: {added}.")
    _print_verdict(job, metrics)


def _train(run: Run, connection: Connection, job: TrainingJob, folder: Location) -> None:
    """Trains from the last checkpoint on, if there is one, and writes the marker."""
    plan, name, cluster = job.plan, job.plan.name, run.config.cluster
    workers = training_worker_range(cluster)

    # 2. Train; Ray finds the checkpoints of an interrupted training in the step's folder
    images = f"{plural(plan.num_images, 'image')} (labelled, of the training splits){job.validation}"
    epochs = f"{plural(plan.epochs, 'epoch')} of {plan.epoch_in_words}"
    print(f"{name}: {images}; {epochs}; {job.subject} on {job.device}.", flush=True)
    for note in filter(None, [*_notes(job), note_on_cpus(run.config, connection, BY_NAME[name].device_key)]):
        print(f"{name}: {note}", flush=True)
    config = run.config.model_dump(mode="json")
    about = {"config": config, "fingerprint": dict(job.fingerprint), "versions": package_versions()}
    least, on_gpu = workers[0], job.device == "cuda"
    with (
        TrainingLog(folder, name, plan.epochs, print_every=plan.stretch, watch=job.watch) as log,
        notices(
            f"{name}: no training worker has started",
            "the training needs",
            least * (cluster.cpus_per_training_worker or 1),
            least if on_gpu else 0,
            come=f"{name}: the training workers have started",
            needs_ray=not folder.is_local,  # a training without Ray keeps its checkpoints in a local folder
        ) as has_started,
    ):
        train(
            job.worker,
            {"run": run.reading(*BY_NAME[name].upstream), "step": name, "about": about, "folder": folder},
            num_workers=workers[0] if workers[0] == workers[1] else workers,
            cpus_per_worker=cluster.cpus_per_training_worker,
            use_gpu=on_gpu,
            storage_uri=folder.uri,
            name=CHECKPOINTS,
            autoscaling=cluster.autoscaling,
            in_process=is_trained_here(cluster, connection, folder),
            on_report=log.add,
            on_start=has_started,
        )

    # 3. Write the marker last, when the networks that rank 0 wrote are complete
    metrics = keep_epoch(folder, name, job.keep)
    kept = f"; the best epoch, {metrics['epoch']}, is kept" if job.keep == "best" else ""
    print(f"{name}: trained in {duration(log.seconds)} ({described(metrics)}){kept}.", flush=True)
    for reason, ids in log.skipped.items():
        print(f"{name}: skipped {len(ids):,}: {reason} ({printable(ids[0])}{', ...' if len(ids) > 1 else ''})")
    _print_verdict(job, metrics)


def is_trained_here(cluster: ClusterConfig, connection: Connection, folder: Location, *, is_new: bool = False) -> bool:
    """Whether the training runs in this process: without a Ray, or if one worker would get nothing from a local Ray.

    A training that was begun on Ray continues there, from Ray Train's checkpoints.

    Args:
        folder: the folder of the training's results.
        is_new: the training will be started again, so what is in the folder does not count.
    """
    is_alone = connection.is_optional and training_worker_range(cluster) == (1, 1)
    is_possible = is_alone and folder.is_local
    return connection.in_process or (is_possible and (is_new or not is_begun_on_ray(folder.uri, CHECKPOINTS)))


def _notes(job: TrainingJob) -> list[str]:
    return [note for note in (job.plan.raise_in_words, *job.notes) if note]


def _print_verdict(job: TrainingJob, metrics: Mapping[str, Any]) -> None:
    if job.verdict and (warning := job.verdict(metrics)):
        print(warning, flush=True)


def require_workers(config: ClusterConfig, plan: Plan) -> None:
    """Refuses more training workers than a batch has images."""
    most, allowed = max(training_worker_range(config)), min(plan.batch_size, plan.num_images)
    if most > allowed:
        raise ValueError(
            f"cluster.training_workers: given {most}, allowed: 1 to {allowed}, because each worker needs at least one "
            f"image of every batch. Lower it, or raise {plan.section}.batch_size."
        )


def _print_dry_run(run: Run, connection: Connection, job: TrainingJob, options: LaunchOptions) -> None:
    """Prints what a training would do."""
    plan, cluster, folder = job.plan, run.config.cluster, run.step(job.plan.name).data()
    if not options.restart and read_complete(folder):
        print_trained(run, plan.name)
        if will_change(folder, plan.name, job.keep):
            print(f"  keeps the network of the {job.keep} epoch from now on.")
        if not options.is_part:
            print(f"  {NOTHING}")
        return
    epochs_left = epochs_to_do(plan, folder, restart=options.restart)
    lines = read_epochs(folder)
    least, most = training_worker_range(cluster)
    workers = plural(least, "training worker") if least == most else f"{least} to {most} training workers"
    is_here = is_trained_here(cluster, connection, folder, is_new=options.restart)
    pace = lines[-1].get("images_per_second") if lines else None
    seconds = "unknown until an epoch is finished"
    if pace:
        seconds = f"about {duration(epochs_left * plan.epoch_images / pace)}"
    elif options.estimate:
        seconds = options.estimate.time_in_words
    print(f"{plan.name}, dry run: {extent_in_words(plan, folder, restart=options.restart)}.")
    for note in _notes(job):
        print(f"  {note}")
    if options.restart:
        print_deletion(folder)
    print(f"  on:      {workers} ({job.device}), {describe_connection(cluster, connection, is_here=is_here)}")
    print(f"  time:    {seconds}\n  storage: the model, and a checkpoint about three times its size, in {folder}")
    if not options.is_part:
        print(f"  {NOTHING}")


def epochs_to_do(plan: Plan, folder: Location, *, restart: bool = False) -> int:
    """The number of epochs that a launch would train.

    Args:
        folder: the folder of the training's results.
    """
    if restart:
        return plan.epochs
    return 0 if read_complete(folder) else max(0, plan.epochs - len(read_epochs(folder)))


def extent_in_words(plan: Plan, folder: Location, *, restart: bool = False) -> str:
    """How much of a training is to do, such as '2 of 4 epochs to do, 3 steps of 4 images each'."""
    epochs_left = epochs_to_do(plan, folder, restart=restart)
    return f"{epochs_left:,} of {plural(plan.epochs, 'epoch')} to do, {plan.epoch_in_words} each"


def print_trained(run: Run, name: str) -> None:
    """The dry run of a finished training, with the epochs that were trained: fewer images may be there now, or more."""
    epochs = plural(read_training(run.step(name).data()).num_epochs, "epoch")
    print(f"{name}, dry run: 0 of {epochs} to do, because it is already trained.")
    if added := added_in_words(run, name):
        print(f"  {added}.")
