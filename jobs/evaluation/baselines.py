"""Baselines for a run's seeds: maps that need no classifier or no sampling, tuned as well as possible.

If images have one large object in the middle, a centred Gaussian makes good seeds, and a high mIoU proves nothing about
localisation. So each baseline is measured at map resolution, on the same images as the seeds. Its width, blur or radius
and its threshold are those with the highest mIoU on the tune part of the training images. Cells above the threshold are
foreground. The others are background, unless saliency maps define the background.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ficklenet.baselines import all_ones, blurred, centred_gaussian, dilated
from jobs.maps.evidence import Evidence
from jobs.run.config_keys import Config

Kind = Literal[
    "all ones",
    "centred Gaussian",
    "maps, best threshold",
    "deterministic maps, best threshold",
    "deterministic maps, blurred",
    "deterministic maps, dilated",
]

THRESHOLDS = tuple(round(0.1 * tenths, 1) for tenths in range(1, 10))
PARAMETERS: dict[Kind, tuple[float, ...]] = {
    "all ones": (0,),
    "centred Gaussian": (0.3, 0.4, 0.5, 0.6, 0.8, 1.0),
    "maps, best threshold": (0,),
    "deterministic maps, best threshold": (0,),
    "deterministic maps, blurred": (1, 2, 3, 4),
    "deterministic maps, dilated": (1, 2, 3, 5, 7),
}
WORDS: dict[Kind, str] = {
    "centred Gaussian": "width {:g} of half the side",
    "deterministic maps, blurred": "blurred by {:g} cells",
    "deterministic maps, dilated": "dilated by {:g} cells",
}


@dataclass(frozen=True)
class Baseline:
    """Maps that replace the run's maps.

    Attributes:
        kind: the kind of maps.
        parameter: width, blur or radius; unused by the other kinds.
        threshold: the threshold between foreground and background.
    """

    kind: Kind
    parameter: float
    threshold: float

    @property
    def is_deterministic(self) -> bool:
        """Whether it is made from the deterministic maps, for which images run through the backbone."""
        return self.kind.startswith("deterministic")

    @property
    def in_words(self) -> str:
        """The parameters in words, such as 'width 0.5 of half the side, threshold 0.4'."""
        if self.kind == "all ones":
            return ""
        words = [WORDS[self.kind].format(self.parameter)] if self.kind in WORDS else []
        return ", ".join([*words, f"threshold {self.threshold:g}"])

    def applied(self, evidence: Evidence) -> Evidence:
        """The evidence with these maps; each map is used as the maximum and as the mean."""
        num_slots, grid = len(evidence.max), (evidence.max.shape[1], evidence.max.shape[2])
        if num_slots == 0:
            return evidence
        match self.kind:
            case "all ones":
                maps = all_ones(num_slots, grid)
            case "centred Gaussian":
                maps = centred_gaussian(num_slots, grid, self.parameter)
            case "deterministic maps, blurred":
                maps = blurred(evidence.max, self.parameter)
            case "deterministic maps, dilated":
                maps = dilated(evidence.max, int(self.parameter))
            case _:
                return evidence
        return replace(evidence, max=maps, mean=np.asarray(maps))

    def settings(self, config: Config) -> Config:
        """The configuration for making seeds from these maps."""
        thresholds = {"theta": self.threshold, "evidence_threshold": self.threshold}
        return config.model_copy(update={"seeds": config.seeds.model_copy(update=thresholds)})


def candidates(*, deterministic: bool) -> list[Baseline]:
    """All baselines to try.

    Args:
        deterministic: include those that are made from the deterministic maps.
    """
    found = [
        Baseline(kind, parameter, threshold)
        for kind, parameters in PARAMETERS.items()
        for parameter in parameters
        for threshold in (THRESHOLDS if kind != "all ones" else (0.5,))
    ]
    return [each for each in found if deterministic or not each.is_deterministic]


def best_of_each_kind(tried: Sequence[tuple[Baseline, float]]) -> list[Baseline]:
    """The baseline of each kind with the highest mIoU; of equal ones the first.

    Args:
        tried: baselines with their mIoU; NaN if nothing could be measured.
    """
    best: dict[Kind, tuple[Baseline, float]] = {}
    for baseline, figure in tried:
        if baseline.kind not in best or figure > best[baseline.kind][1]:
            best[baseline.kind] = baseline, figure
    return [baseline for baseline, _ in best.values()]
