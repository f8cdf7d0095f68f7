"""Says how far a run is: per step what is done, left and skipped and why, how fast, how much is stored, who works.

Reads the run and changes nothing; works beside running jobs, on folders and on s3://. A step is "running" by its
driver's sign of life, renewed every 15 s; one that has grown stale is named so.
"""

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from cluster.words import plural
from jobs.command_line import Parser, run_main
from jobs.progress import duration, size
from jobs.run import Run, open_run
from jobs.step_states import JOBS, StepState, run_state
from storage.heartbeat import Heartbeat, heartbeats
from storage.location import Location
from storage.steps import ids_by_reason

EXAMPLES = """examples:
  python jobs/status.py --run s3://bucket/voc
  watch -n 30 python jobs/status.py --run /data/voc
  python jobs/status.py --run /data/voc --json
"""

RECENT_UNITS = 64  # over which the pace is taken
NAMED = 3  # skipped images named for a reason


@dataclass(frozen=True)
class Driver:
    """A job at work on a step, or one that was: "1-of-1" is the whole step, "2-of-4" the second of four shards."""

    launch: str
    host: str
    pid: int
    seen_seconds_ago: float
    is_stale: bool


@dataclass(frozen=True)
class StepStatus:
    """One step, for people and for `--json`.

    Attributes:
        state: "not started", "partly done", "running", "done", "outdated" or, of the evaluation, "not possible".
        unit: what the counts count: "images", "epochs" or "figures".
        num_skipped: images left out.
        skipped: their ids by reason, the most frequent first.
        pace: images a second of the drivers at work, None where too little is finished to say.
        seconds_left: at that pace.
        objects, bytes: stored in the step's folder.
        command: what starts or continues it.
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
    command: str


@dataclass(frozen=True)
class RunStatus:
    """A run: its manifest, and its steps in order."""

    run: str
    images: int
    classes: int
    steps: Sequence[StepStatus]


def main(arguments: list[str]) -> None:
    parser = Parser(prog="status", description=f"{__doc__}\n{EXAMPLES}")
    parser.add_argument("--run", required=True, metavar="PATH", help="the run: a folder or an s3:// prefix")
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")
    parser.add_argument("--debug", action="store_true", help="show tracebacks and library logs")
    given = parser.parse_args(arguments)
    status = run_status(open_run(given.run))
    print(json.dumps(asdict(status), indent=1) if given.json else "\n".join(_lines(status)))


def run_status(run: Run) -> RunStatus:
    """What a run's folder tells now.

    Raises:
        ValueError: it holds no manifest yet.
    """
    manifest, now = run.manifest(), time.time()
    with ThreadPoolExecutor(2 * len(JOBS)) as pool:  # while receipts are read below
        stored = {name: pool.submit(Location.usage, run.location / name) for name in (*JOBS, "evaluation")}
        beats = {name: pool.submit(heartbeats, run.location / name) for name in stored}
        steps = [
            _step_status(state, beats[name].result(), stored[name].result(), now)
            for name, state in run_state(run, manifest).steps.items()
        ]
    return RunStatus(run.uri, manifest.num_images, manifest.num_classes, steps)


def _step_status(state: StepState, beats: Sequence[Heartbeat], stored: tuple[int, int], now: float) -> StepStatus:
    at_work = [beat for beat in beats if not beat.is_stale(now)]
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
        drivers=[Driver(beat.launch, beat.host, beat.pid, beat.age(now), beat.is_stale(now)) for beat in beats],
        command=state.command,
    )


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:NAMED]) + (f" and {len(ids) - NAMED:,} more: --json names all" if len(ids) > NAMED else "")


def _pace(state: StepState, since: float) -> float | None:
    """Images a second over the last units that finished since then; the first of them only starts the clock."""
    latest = sorted(
        (receipt for receipt in state.receipts if receipt.finished >= since), key=lambda each: each.finished
    )
    latest = latest[-RECENT_UNITS:]
    if len(latest) < 2 or latest[-1].finished == latest[0].finished:
        return None
    images = sum(state.images[receipt.unit] for receipt in latest[1:])
    return images / (latest[-1].finished - latest[0].finished)


def _lines(status: RunStatus) -> list[str]:
    lines = [f"{status.run}: {plural(status.images, 'image')}, {plural(status.classes, 'class')}"]
    for step in status.steps:
        lines += _step_lines(step)
    return lines


def _step_lines(step: StepStatus) -> list[str]:
    if step.state == "not possible":
        return [f"{step.name}: not possible, as no image to report on has a mask"]
    if step.state == "not started" and not step.drivers:
        return [f"{step.name}: not started; {step.command}"]
    parts = [f"{plural(step.done, step.unit.removesuffix('s'))} done"]
    parts += [f"{step.num_skipped:,} skipped"] if step.num_skipped and step.unit == "images" else []
    parts += [f"{step.left:,} left"] if step.unit != "figures" else []
    parts += [f"{step.pace:.2f} {step.unit}/s, about {duration(step.seconds_left or 0)} left"] if step.pace else []
    lines = [f"{step.name}: {step.state}; {', '.join(parts)}; {size(step.bytes)} in {plural(step.objects, 'object')}"]
    lines += [f"  skipped {len(ids):,}: {reason} ({_some(ids)})" for reason, ids in step.skipped.items()]
    for driver in step.drivers:
        silent = "silent, so probably killed: last seen" if driver.is_stale else "seen"
        where = f"driver {driver.launch} on {driver.host} (process {driver.pid})"
        lines.append(f"  {where}, {silent} {duration(driver.seen_seconds_ago)} ago")
    if step.state in ("partly done", "outdated"):
        lines.append(f"  continue: {step.command}" if step.state == "partly done" else f"  anew: {step.command}")
    return lines


if __name__ == "__main__":
    run_main(main)
