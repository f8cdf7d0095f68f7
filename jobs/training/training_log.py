"""The logs of a training: a line of metrics per epoch, the event files of TensorBoard, and printed lines."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from torch.utils.tensorboard import SummaryWriter

from cluster.training_context import Metrics
from jobs.run.training_record import read_epochs
from jobs.steps.progress import duration
from storage.location import Location
from storage.records import seal
from storage.steps import Skipped, ids_by_reason

NAMES = {
    "loss": "loss {:.3f}",
    "val_map": "validation mAP {:.3f}",
    "val_miou": "validation mIoU {:.3f}",
    "images_per_second": "{:.1f} images/s",
    "predicted_foreground": "{:.1%} of the cells foreground",
    "skipped": "{} skipped",
}
"""The texts of printed metrics, in this order."""


class TrainingLog:
    """The log of one training. Relaunches continue it. The driver uses it in a `with` block.

    `metrics.jsonl` has a line per epoch. TensorBoard has one event file per launch, with the loss of every few steps,
    the learning rate, the speed, the number of workers and the validation's metrics. For a run on S3, the event file is
    written to a temporary folder and copied to S3 at every report.

    Args:
        num_epochs: the epochs of the whole training.
        print_every: epochs between printed lines; the last epoch and epochs with a validation are always printed.
        watch: returns a warning about an epoch's metrics, or ''.
    """

    def __init__(
        self,
        folder: Location,
        name: str,
        num_epochs: int,
        *,
        print_every: int = 1,
        watch: Callable[[Metrics], str] | None = None,
    ) -> None:
        self.name, self.num_epochs, self.print_every, self.watch = name, num_epochs, print_every, watch
        self._place = folder / "metrics.jsonl"
        self.lines = read_epochs(folder)
        self._started, self._new_epochs = time.monotonic(), 0
        self._first_epoch_ended = self._pass_seconds = 0.0
        self._events = _Events(folder)

    @property
    def last(self) -> Metrics:
        return self.lines[-1] if self.lines else {}

    @property
    def skipped(self) -> dict[str, list[str]]:
        """The ids of the images that could not be read, by reason."""
        reasons = {key: why for line in self.lines for key, why in line.get("skipped_images", {}).items()}
        return ids_by_reason(Skipped(image_id, reason) for image_id, reason in reasons.items())

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def add(self, metrics: Metrics) -> None:
        """Records a report of `jobs.training.training_loop.run_training`."""
        self._events.add(metrics)
        if "epoch" not in metrics:
            return
        line = {name: value for name, value in metrics.items() if name != "losses"}
        # If an epoch is trained again, its new line replaces the earlier one.
        self.lines = [earlier for earlier in self.lines if earlier["epoch"] < line["epoch"]] + [line]
        self._place.write_bytes(b"".join(seal(each) + b"\n" for each in self.lines))
        left = self._left(line)
        if line["epoch"] % self.print_every == 0 or line["epoch"] == self.num_epochs or self._is_validated(line):
            print(f"{self.name}: epoch {line['epoch']} of {self.num_epochs} ({described(line)}){left}", flush=True)
        if self.watch and (warning := self.watch(line)):
            print(warning, flush=True)

    @staticmethod
    def _is_validated(line: Metrics) -> bool:
        return any(name.startswith("val_") for name in line)

    def _left(self, line: Metrics) -> str:
        """The estimated time left. It leaves out this launch's first epoch, which includes the start-up.

        A frozen backbone's passes happen once in a launch, so they are not part of the pace. Each epoch takes half of
        the images and mirror images that are left, so about as many passes as in this epoch are still to come.
        """
        self._new_epochs += 1
        if self._new_epochs == 1:
            self._first_epoch_ended = time.monotonic()
            return ""
        passes, epochs_left = line.get("backbone_seconds", 0.0), self.num_epochs - line["epoch"]
        self._pass_seconds += passes
        others = max(0.0, time.monotonic() - self._first_epoch_ended - self._pass_seconds)
        seconds = epochs_left * others / (self._new_epochs - 1) + (passes if epochs_left else 0.0)
        return f", about {duration(seconds)} left"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._events.close()


def described(metrics: Metrics) -> str:
    """Metrics as text for people."""
    return ", ".join(text.format(metrics[name]) for name, text in NAMES.items() if name in metrics)


class _Events:
    """This launch's event file. The first report creates it, so a launch without work leaves no file."""

    def __init__(self, folder: Location) -> None:
        self._folder = folder
        self._aside: tempfile.TemporaryDirectory[str] | None = None
        self._writer: SummaryWriter | None = None

    def add(self, metrics: Metrics) -> None:
        writer = self._writer or self._open()
        step = metrics["step"]
        for step_of_loss, loss in metrics["losses"]:
            writer.add_scalar("loss", loss, step_of_loss)
        for name, value in metrics.items():
            if name.startswith("val_") or name in ("learning_rate", "images_per_second", "workers"):
                writer.add_scalar(name, value, step)
        writer.flush()
        if not self._folder.is_local:
            for file in Path(writer.log_dir).iterdir():
                (self._folder / file.name).write_bytes(file.read_bytes())

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._aside is not None:
            self._aside.cleanup()

    def _open(self) -> SummaryWriter:
        place = self._folder.uri
        if not self._folder.is_local:
            self._aside = tempfile.TemporaryDirectory()
            place = self._aside.name
        self._writer = SummaryWriter(place)
        return self._writer
