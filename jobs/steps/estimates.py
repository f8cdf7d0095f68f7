"""What the steps of a run will take, as a dry run has estimated it, and how it is kept for `status.py`."""

from collections.abc import Iterable
from dataclasses import dataclass

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
        source: where the time comes from, in words; it is not kept.
        num_images: the images that the manifest had; 0 if an earlier version did not keep it.
    """

    seconds: float
    bytes: float
    source: str = "timed on a few images"
    num_images: int = 0

    @property
    def time_in_words(self) -> str:
        return f"about {duration(self.seconds)} ({self.source})"


@dataclass(frozen=True)
class KeptEstimate:
    """What is kept of a dry run.

    Attributes:
        steps: by their names.
        other_seconds: the start of processes, the metrics and the report; 0 if these are not known.
    """

    steps: dict[str, StepEstimate]
    other_seconds: float = 0.0


def write_estimates(run: Run, estimate: KeptEstimate) -> None:
    """Keeps an estimate in the run."""
    steps = {
        name: {"seconds": each.seconds, "bytes": each.bytes, "images": each.num_images}
        for name, each in estimate.steps.items()
    }
    (run.location / FILE).write_bytes(seal({"steps": steps, "other_seconds": estimate.other_seconds}, indent=1))


def read_estimates(run: Run) -> KeptEstimate:
    """The kept estimate; without steps if there is none.

    Raises:
        ValueError: the file is damaged.
    """
    place = run.location / FILE
    if not place.exists():
        return KeptEstimate({})
    content = read_json(place, "an estimate", _REMEDY)
    steps = {
        name: StepEstimate(float(each["seconds"]), float(each["bytes"]), num_images=int(each.get("images", 0)))
        for name, each in content.get("steps", {}).items()
    }
    return KeptEstimate(steps, float(content.get("other_seconds", 0.0)))


def time_at_work(receipts: Iterable[Receipt]) -> float:
    """The seconds in which some worker worked on a unit: without starts, and without pauses between launches."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted((receipt.finished - receipt.seconds, receipt.finished) for receipt in receipts):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total
