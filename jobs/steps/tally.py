"""The images of a launch: done, skipped, left; and the refusal when too many had to be skipped."""

from collections import Counter
from dataclasses import dataclass, field

from cluster.words import plural
from storage.steps import Receipt


@dataclass
class Tally:
    """Images of a launch so far, those of the units that were finished before it included."""

    total: int
    done: int = 0
    skipped: Counter[str] = field(default_factory=Counter)  # by reason

    @property
    def left(self) -> int:
        return self.total - self.done - self.skipped.total()

    def add(self, receipt: Receipt, num_images: int) -> None:
        self.done += num_images - len(receipt.skipped)
        self.skipped.update(skip.reason for skip in receipt.skipped)

    def check(self, name: str, max_fraction: float) -> None:
        """Raises ValueError when more than that share of all images had to be skipped."""
        if is_refused(self.skipped.total(), self.total, max_fraction):
            raise ValueError(
                f"{name}: {self.skipped.total():,} of {plural(self.total, 'image')} had to be skipped (mostly: "
                f"{self.skipped.most_common(1)[0][0]}), more than images.max_skipped_fraction = {max_fraction:g}. "
                "Repair the images and give --retry-skipped, or raise this fraction."
            )


def is_refused(num_skipped: int, num_images: int, max_fraction: float) -> bool:
    """Whether too many images of a step were skipped for it to count as done."""
    return num_skipped > max_fraction * num_images
