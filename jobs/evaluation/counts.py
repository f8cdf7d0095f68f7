"""Counts over some images: small confusion matrices, which can be added in any order."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from ficklenet.metrics import ConfusionMatrix
from jobs.run.selection import Resolution


@dataclass
class Counts:
    """Confusion matrices by recipe and resolution, and the number of images in them.

    Attributes:
        several: the same matrices for only the `num_several` images with several classes in their mask.
        num_foreign: the number of measured images whose mask has no pixel of any of their classes; `first_foreign` is
            one of them.
        left_out: the number of images that were not measured, by reason.
        skipped: for each recipe, the number of measured images without labels because its step skipped them, by reason.
    """

    matrices: dict[tuple[str, Resolution], ConfusionMatrix] = field(default_factory=dict)
    several: dict[tuple[str, Resolution], ConfusionMatrix] = field(default_factory=dict)
    num_images: int = 0
    num_several: int = 0
    num_foreign: int = 0
    first_foreign: str = ""
    left_out: Counter[str] = field(default_factory=Counter)
    skipped: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, other: "Counts") -> None:
        for mine, others in ((self.matrices, other.matrices), (self.several, other.several)):
            for measured, matrix in others.items():
                mine[measured] = mine[measured] + matrix if measured in mine else matrix
        self.num_images += other.num_images
        self.num_several += other.num_several
        self.num_foreign += other.num_foreign
        self.first_foreign = min(filter(None, (self.first_foreign, other.first_foreign)), default="")
        self.left_out.update(other.left_out)
        for recipe, reasons in other.skipped.items():
            self.skipped[recipe].update(reasons)
