"""Counts the images of a launch (done, skipped, left), and stops it if too many images are skipped."""

from collections import Counter
from dataclasses import dataclass, field

from cluster.words import plural
from storage.errors import MISSING
from storage.steps import Receipt


@dataclass
class Tally:
    """The images of a launch so far; images of units that were finished before count too."""

    total: int
    done: int = 0
    skipped: Counter[str] = field(default_factory=Counter)  # by reason

    @property
    def left(self) -> int:
        return self.total - self.done - self.skipped.total()

    def add(self, receipt: Receipt, num_images: int) -> None:
        self.done += num_images - len(receipt.skipped)
        self.skipped.update(skip.reason for skip in receipt.skipped)

    def remove(self, receipt: Receipt, num_images: int) -> None:
        """Takes back what was added."""
        self.done -= num_images - len(receipt.skipped)
        self.skipped -= Counter(skip.reason for skip in receipt.skipped)

    def check(self, name: str, max_fraction: float, command: str) -> None:
        """Refuses a step if too many of its images had to be skipped.

        Args:
            command: the command that runs the step.

        Raises:
            ValueError: more than `max_fraction` of all images had to be skipped.
        """
        if not is_refused(self.skipped.total(), self.total, max_fraction):
            return
        reason = self.skipped.most_common(1)[0][0]
        remedy = f"Repair the images and run '{command} --retry-skipped', or raise this fraction."
        if reason.endswith(MISSING):
            remedy = (
                "Put the files back, or name the images' new folder with prepare_dataset.py --images. Then run "
                f"'{command}'."
            )
        raise ValueError(
            f"{name}: {self.skipped.total():,} of {plural(self.total, 'image')} had to be skipped (mostly: {reason}), "
            f"more than images.max_skipped_fraction = {max_fraction:g}. {remedy}"
        )


def is_refused(num_skipped: int, num_images: int, max_fraction: float) -> bool:
    """Whether too many images of a step were skipped, so that it does not count as done."""
    return num_skipped > max_fraction * num_images
