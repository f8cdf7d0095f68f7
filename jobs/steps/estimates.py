"""What the steps of a run will take, as a dry run has estimated it, and how it is kept for `status.py`."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from jobs.run.directory import Run
from jobs.steps.progress import duration
from storage.records import read_json, seal
from storage.steps import Receipt

FILE = "estimate.json"
_REMEDY = "Delete it; run_pipeline.py --dry-run of a run that was not started yet writes it again."


@dataclass(frozen=True)
class StepEstimate:
    """The estimate of one step.

    Attributes:
        seconds: time from the first image to the last, without the start of processes.
        bytes: stored bytes.
    """

    seconds: float
    bytes: float

    @property
    def time_in_words(self) -> str:
        return f"about {duration(self.seconds)} (timed on a few images)"


def write_estimates(run: Run, estimates: Mapping[str, StepEstimate]) -> None:
    """Keeps the estimates by the names of their steps."""
    content = {name: asdict(estimate) for name, estimate in estimates.items()}
    (run.location / FILE).write_bytes(seal(json.loads(json.dumps({"steps": content})), indent=1))


def read_estimates(run: Run) -> dict[str, StepEstimate]:
    """The kept estimates by the names of their steps; empty if there are none.

    Raises:
        ValueError: the file is damaged.
    """
    place = run.location / FILE
    if not place.exists():
        return {}
    steps = read_json(place, "an estimate", _REMEDY).get("steps", {})
    return {name: StepEstimate(float(each["seconds"]), float(each["bytes"])) for name, each in steps.items()}


def time_at_work(receipts: Iterable[Receipt]) -> float:
    """The seconds in which some worker worked on a unit: without starts, and without pauses between launches."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted((receipt.finished - receipt.seconds, receipt.finished) for receipt in receipts):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
