"""The status of a run. For each step: what is done, left and skipped, the speed, the storage, and who works on it."""

from collections.abc import Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow.compute as pc

from cluster.words import listed, plural
from jobs.run.directory import LOGS, Run
from jobs.run.origin import origin_of
from jobs.run.steps import STEPS
from jobs.run.training_record import TrainingRecord
from jobs.steps.added_images import num_unseen
from jobs.steps.estimates import KeptEstimate, read_estimates, time_at_work
from jobs.steps.makers import makers
from jobs.steps.progress import duration, size
from jobs.steps.states import StepState, run_state, steps_to_show
from storage.heartbeat import Heartbeat, heartbeats
from storage.location import Location
from storage.manifest import Manifest
from storage.steps import ids_by_reason
from storage.text import printable

RECENT_UNITS = 64  # the speed is measured over these
NAMED = 3  # ids printed for each reason of skipping
NEXT = {  # what the command does
    "partly done": "continue",
    "outdated": "compute again",
    "refused": "try again",
    "record lost": "put its step.json back from a copy, or compute again",
}


@dataclass(frozen=True)
class Driver:
    """A job that works or worked on a step. "1-of-1" is the whole step, "2-of-4" the second of four shards."""

    launch: str
    host: str
    pid: int
    seen_seconds_ago: float
    is_stale: bool


@dataclass(frozen=True)
class StepStatus:
    """The status of one step, for people and for `--json`.

    Attributes:
        state: "not started", "partly done", "running", "done", "outdated", "refused", "record lost" (there are results
            without ``step.json``) or, for the evaluation, "not possible".
        unit: what is counted: "images", "epochs" or "metrics".
        num_skipped: the number of skipped images.
        skipped: their ids by reason, the most frequent reason first.
        pace: images per second of the running drivers; None if too little is finished to know it.
        seconds_left: the estimated time left at this speed.
        objects, bytes: the number and size of the stored objects in the step's folder.
        codes: the number of finished units by the code, and the packages that differ, that computed them.
        command: the command that starts or continues the step.
        note: further information, "" for none.
        seconds: time at work, without starts and pauses; None if it is not known.
        estimated_seconds: what the dry run of the fresh pipeline estimated for this; None if there was none, or if the
            step has images that were added since.
        results: the address of the folder with the step's results: another one after each restart.
    """

    name: str
    state: str
    unit: str
    done: int
    left: int
    num_skipped: int
    skipped: dict[str, list[str]]
    pace: float | None
    seconds_left: float | None
    objects: int
    bytes: int
    drivers: Sequence[Driver]
    codes: Mapping[str, int]
    command: str
    note: str
    seconds: float | None = None
    estimated_seconds: float | None = None
    results: str = ""


@dataclass(frozen=True)
class RunStatus:
    """A run.

    Attributes:
        images, classes: how many the manifest has.
        masks: how many of its images have a mask, also an imported one.
        origin: the address of the run that made its masks, if it has only masks of new images; else "".
        steps: in order.
        latest_log: the address of the log of the latest launch, '' if there is none.
        seconds: the time at work until now of all steps with an estimate; None if there is no estimate.
        estimated_seconds: what the dry run of the fresh pipeline estimated for these steps, and with the start of
            processes, the metrics and the report in `estimated_total_seconds`; None if there is no estimate.
    """

    run: str
    images: int
    classes: int
    steps: Sequence[StepStatus]
    masks: int = 0
    origin: str = ""
    latest_log: str = ""
    seconds: float | None = None
    estimated_seconds: float | None = None
    estimated_total_seconds: float | None = None


def run_status(run: Run) -> RunStatus:
    """Reads the status from a run's folder and changes nothing.

    Raises:
        ValueError: the run has no manifest yet.
    """
    manifest = run.manifest()
    with ThreadPoolExecutor(2 * len(STEPS)) as pool:  # runs while the receipts are read below
        stored = {row.name: pool.submit(Location.usage, run.location / row.name) for row in STEPS}
        beats = {name: pool.submit(heartbeats, run.location / name) for name in stored}
        results = {name: pool.submit(run.step(name).data) for name in stored}
        state, kept = run_state(run, manifest), read_estimates(run)
        steps = [
            replace(
                _step_status(step, beats[name].result(), stored[name].result()),
                seconds=_seconds(step, state.trainings.get(name)),
                estimated_seconds=_estimated_seconds(run, manifest, name, kept),
                results=results[name].result().uri,
            )
            for name, step in steps_to_show(run, state).items()
        ]
    logs = run.location / LOGS
    latest = next(((logs / name).uri for name in logs.list_names()[-1:]), "")  # they begin with the time
    masks = sum(pc.sum(table["mask_uri"].is_valid()).as_py() or 0 for table in manifest.iter_tables(["mask_uri"]))
    status = RunStatus(run.uri, manifest.num_images, manifest.num_classes, steps, masks, origin_of(run), latest)
    return _with_total(status, kept.other_seconds)


def _estimated_seconds(run: Run, manifest: Manifest, name: str, kept: KeptEstimate) -> float | None:
    """The estimate of a step; None if there is none of as many images as the step has now."""
    if (estimate := kept.steps.get(name)) is None:
        return None
    estimated = estimate.num_images or manifest.parts[0][1]
    return estimate.seconds if estimated == manifest.num_images - num_unseen(run, name) else None


def _with_total(status: RunStatus, other_seconds: float) -> RunStatus:
    estimated = [step for step in status.steps if step.estimated_seconds is not None]
    if not estimated:
        return status
    seconds = sum(step.estimated_seconds or 0.0 for step in estimated)
    return replace(
        status,
        seconds=sum(step.seconds or 0.0 for step in estimated),
        estimated_seconds=seconds,
        estimated_total_seconds=seconds + other_seconds,
    )


def _step_status(state: StepState, beats: Sequence[Heartbeat], stored: tuple[int, int]) -> StepStatus:
    at_work = [beat for beat in beats if not beat.is_stale]
    pace = _pace(state, min(beat.started for beat in at_work)) if at_work else None
    return StepStatus(
        name=state.name,
        state="running" if at_work else state.state,
        unit=state.unit,
        done=state.done,
        left=state.left,
        num_skipped=len(state.skipped),
        skipped=ids_by_reason(state.skipped),
        pace=pace,
        seconds_left=state.left / pace if pace else None,
        objects=stored[0],
        bytes=stored[1],
        drivers=[Driver(beat.launch, beat.host, beat.pid, max(0.0, beat.age), beat.is_stale) for beat in beats],
        codes=makers(state.receipts),
        command=state.command,
        note=state.note,
    )


def _seconds(state: StepState, training: TrainingRecord | None) -> float | None:
    """The time at work; None if nothing is finished, or if an earlier version did not record it."""
    if training is None:
        return time_at_work(state.receipts) if state.receipts else None
    seconds = [float(line["seconds"]) for line in training.epochs if "seconds" in line]
    return sum(seconds) if seconds and len(seconds) == len(training.epochs) else None


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - NAMED:,} more: --json names all" if len(ids) > NAMED else ""
    return ", ".join(map(printable, ids[:NAMED])) + more


def _pace(state: StepState, since: float) -> float | None:
    """Images per second over the last units that finished since then; the first one only starts the clock."""
    latest = sorted(
        (receipt for receipt in state.receipts if receipt.finished >= since), key=lambda each: each.finished
    )
    latest = latest[-RECENT_UNITS:]
    if len(latest) < 2 or latest[-1].finished == latest[0].finished:
        return None
    images = sum(state.images[receipt.unit] for receipt in latest[1:])
    return images / (latest[-1].finished - latest[0].finished)


def status_lines(status: RunStatus) -> list[str]:
    """The status for people, line by line."""
    masks = f", {plural(status.masks, 'image')} with a mask" if status.masks else ""
    lines = [f"{status.run}: {plural(status.images, 'image')}, {plural(status.classes, 'class')}{masks}"]
    if status.origin:
        lines.append(f"it has only masks of new images, made with the network of {status.origin}")
    to_do = {step.name for step in status.steps if step.state in (*NEXT, "running")}
    for step in status.steps:
        lines += _step_lines(step, to_do)
    if status.seconds is not None:
        lines.append(_total_line(status))
    return lines + ([f"log of the latest launch: {status.latest_log}"] if status.latest_log else [])


def _total_line(status: RunStatus) -> str:
    """The time of the steps that have an estimate beside it, in the words of a step's line and of the dry run."""
    known = status.estimated_seconds or 0.0
    taken, estimated = duration(status.seconds or 0.0), duration(known)
    compared = [step for step in status.steps if step.estimated_seconds is not None]
    others = [step.name for step in status.steps if step.estimated_seconds is None and step.unit != "metrics"]
    if all(step.state == "not started" for step in compared):
        what = listed([step.name for step in compared]) if others else "all of this"
        whole = known if others else status.estimated_total_seconds or known
        return f"pipeline: nothing is started yet; the estimate of {what} was {duration(whole)}"
    until = "" if all(step.state == "done" for step in compared) else " until now"
    without = "without the start of processes, the metrics and the report"
    if others:
        names = listed([step.name for step in compared])
        return (
            f"pipeline: {names} took {taken}{until}, {without}; the estimate of the same was {estimated}. There is no "
            f"estimate of {listed(others)}"
        )
    with_them = f", and {duration(whole)} with them" if (whole := status.estimated_total_seconds or 0.0) > known else ""
    return f"pipeline: all of this took {taken}{until}, {without}; the estimate was {estimated}{with_them}"


def _step_lines(step: StepStatus, to_do: Set[str]) -> list[str]:
    """The lines of a step; `to_do` has the names of the steps that are not finished, or not up to date."""
    if step.state == "not possible":
        return [f"{step.name}: no figures, because none of the images to measure has a mask; nothing else needs one"]
    if step.state == "not started" and not step.drivers:
        return [f"{step.name}: not started; {step.command}"]
    parts = [f"{plural(step.done, step.unit.removesuffix('s'))} done"]
    parts += [f"{step.num_skipped:,} skipped"] if step.num_skipped and step.unit == "images" else []
    parts += [f"{step.left:,} left"] if step.unit != "metrics" else []
    parts += [f"{step.pace:.2f} {step.unit}/s, about {duration(step.seconds_left or 0)} left"] if step.pace else []
    lines = [f"{step.name}: {step.state}; {', '.join(parts)}; {size(step.bytes)} in {plural(step.objects, 'object')}"]
    lines += [f"  skipped {len(ids):,}: {reason} ({_some(ids)})" for reason, ids in step.skipped.items()]
    lines += [f"  {step.note}"] if step.note else []
    if step.results.rsplit("/", 1)[-1].startswith("start-"):
        lines.append(f"  results, since a restart: {step.results}")
    if step.state == "running" and not step.done and step.unit != "metrics":
        lines.append("  nothing is finished yet: it computes, or waits for workers or nodes; its output says which")
    if step.state == "done" and step.seconds is not None and step.estimated_seconds is not None:
        start = "without the time to start processes (the log includes it)"
        lines.append(f"  took {duration(step.seconds)} {start}; the estimate was {duration(step.estimated_seconds)}")
    if len(step.codes) > 1:
        units = ", ".join(f"{plural(count, 'unit')} by {code}" for code, count in step.codes.items())
        lines.append(f"  computed by different code or packages, with the same algorithm version: {units}")
    for driver in step.drivers:
        verdict = ", probably killed" if driver.is_stale else ""
        where = f"driver {driver.launch} on {driver.host} (process {driver.pid})"
        lines.append(f"  {where}: last heartbeat {duration(driver.seen_seconds_ago)} ago{verdict}")
    if step.state in NEXT:
        earlier = next((row.title for row in STEPS if row.title in to_do and row.name in _upstream_of(step.name)), "")
        when = (
            f", when {earlier} is finished" if earlier and step.state == "outdated" and step.unit != "metrics" else ""
        )
        lines.append(f"  {NEXT[step.state]}{when}: {step.command}")
    return lines


def _upstream_of(title: str) -> tuple[str, ...]:
    """The names of the steps that a step may read."""
    return next(row.upstream for row in STEPS if row.title == title)
