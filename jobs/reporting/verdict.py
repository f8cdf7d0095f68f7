"""What the figures of a run mean together: whether to trust its masks, and what to do next. One sentence each.

The first rule that applies decides. The limits are rough: they separate runs that failed from runs worth a look.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cluster.words import listed, plural
from ficklenet.metrics import chance_precision
from jobs.evaluation.metrics import FEW_MASKS
from jobs.reporting.measured import Measured
from jobs.run.directory import Run
from jobs.run.origin import origin_of
from jobs.run.trial import is_trial, one_label_remedy
from jobs.steps.added_images import num_unseen
from jobs.steps.evaluation_state import MASKS_CHANGED
from jobs.training.image_list import ImageList, image_list
from storage.masks import SPECK_PIXELS

WEAK, FAIR = 0.3, 0.7
"""Shares of the way from chance to 1 of the validation mAP. Below the first, the classifier has learnt little."""

MANY_UNRECOGNISED = 0.25
HALF = 0.5  # mIoU

TOO_GOOD = 0.98
"""An mIoU that no network reaches on masks which were drawn by hand: two people who draw the same mask reach less."""

GUIDE = "docs/report.md"
CORRECTING, CORRECTING_NEW = "docs/tutorial-cvat.md", "docs/howto-new-images.md"  # the second in a run of new images


@dataclass(frozen=True)
class BestMasks:
    """The best masks that were measured.

    Attributes:
        labels: their kind, such as "pseudo-labels".
        num_images: the number of images with a mask drawn by hand that they were compared with.
        splits: the splits of these images; "" for images without one.
        part: "all" or "report" of these splits.
        others: the kind and the mIoU of the other masks of the same images.
    """

    labels: str
    mean_iou: float
    num_images: int
    splits: tuple[str, ...]
    part: str = "all"
    others: tuple[tuple[str, float], ...] = ()

    @property
    def images(self) -> str:
        """The number of images and which they are, such as "3 images of val"."""
        splits = listed([split or "no split" for split in self.splits]) if any(self.splits) else ""
        part = "" if self.part == "all" else f"the {self.part} part"
        return " of ".join(filter(None, (plural(self.num_images, "image"), part, splits)))


@dataclass(frozen=True)
class Figures:
    """The figures that decide.

    Attributes:
        mean_precision: the classifier's validation mAP, in [0, 1]; None if there is none.
        chance: the mAP of random scores on the same images; None if it is not known.
        unrecognised: the share of images with a label that the classifier does not recognise; None without maps.
        one_label: the only label in all predictions; "" if there are several, or no predictions.
        measured: the best masks that were measured; None if there are none.
        is_on_trained_masks: whether the network was measured on masks that it was trained on.
        to_measure_again: the command that measures again, if masks were added or changed since; else "".
        has_masks: whether the run has seeds, pseudo-labels or predictions.
        has_pseudo_labels: whether they are complete.
    """

    mean_precision: float | None = None
    chance: float | None = None
    unrecognised: float | None = None
    one_label: str = ""
    measured: BestMasks | None = None
    is_on_trained_masks: bool = False
    to_measure_again: str = ""
    has_masks: bool = False
    has_pseudo_labels: bool = False


@dataclass(frozen=True)
class Verdict:
    """The judgement.

    Attributes:
        level: "good", "careful" (look before you use them) or "bad" (do not use them).
        sentence: whether to trust the masks, and why.
        advice: what to do next.
        command: the command for it; "" for none.
    """

    level: Literal["good", "careful", "bad"]
    sentence: str
    advice: str
    command: str = ""


def judge(run: Run, figures: Figures) -> Verdict | None:
    """The verdict; None if there are no masks yet."""
    if not figures.has_masks:
        return None
    if is_trial(run.config):
        return Verdict(
            "bad",
            "Do not use these masks: this run is a trial with the tiny network, which shows only whether the data and "
            "the machine are right.",
            "For real masks, prepare another run with docs/examples/own_data.toml.",
        )
    if figures.one_label:
        sentence = f"Do not use the network's masks: every pixel is {figures.one_label}."
        advice, export = one_label_remedy(run.config), ""
        if figures.has_pseudo_labels:
            advice += " The pseudo-labels do not come from this network; look at these instead."
            export = export_command(run, figures.one_label)
        return Verdict("bad", sentence, advice, export)
    if figures.measured and figures.measured.num_images >= FEW_MASKS:
        return _judge_measured(run, figures.measured)
    return _judge_classifier(figures) or _judge_unmeasured(run, figures)


def export_command(run: Run, one_label: str) -> str:
    """The command that exports the finest masks with objects, without specks.

    Args:
        one_label: the only label in all predictions; "" if there are several.
    """
    labels = ["--labels", "pseudo_labels"] if one_label else []
    return run.command("export_labels", "--format", "cvat", *labels, "--min-object-pixels", f"{SPECK_PIXELS}")


def _judge_measured(run: Run, best: BestMasks) -> Verdict:
    mean_iou = best.mean_iou
    figure = f"the {best.labels} have mIoU {mean_iou:.2f} on {best.images} with masks"
    is_new, guide = bool(origin_of(run)), _correcting(run)
    if mean_iou < HALF:
        return Verdict(
            "bad",
            f"Correct these masks before you use them: {figure}, so a typical mask shares less than half of its pixels "
            "with its object.",
            f"Correct {'more of them' if is_new else 'the images of the list “Look at these first”'}, and train on "
            f"them ({guide}).",
        )
    if mean_iou > TOO_GOOD:
        return Verdict(
            "careful",
            f"Nobody knows yet how good these masks are: {figure}, so these masks are probably the run's own.",
            f"Draw or correct the masks of about {FEW_MASKS} images by hand and measure again ({guide}).",
        )
    return Verdict(
        "good",
        f"These masks are good enough to start from: {figure}.",
        "Look at the worst images first, and correct those that matter to you.",
    )


def _judge_classifier(figures: Figures) -> Verdict | None:
    """The verdict if the classifier is too weak; else None."""
    score, chance, unknown = figures.mean_precision, figures.chance, figures.unrecognised
    better = "Check the image labels, give more photographs of each class, and start again with --restart classifier."
    if score is not None and chance is not None and score < (fair := chance + FAIR * (1 - chance)):
        against = f"validation mAP {score:.2f}, random scores {chance:.2f}, good from {fair:.2f}"
        if score < chance + WEAK * (1 - chance):
            return Verdict("bad", f"Do not use these masks: the classifier has learnt little ({against}).", better)
        return Verdict("careful", f"Do not trust these masks yet: the classifier is weak ({against}).", better)
    if unknown is not None and unknown >= MANY_UNRECOGNISED:
        return Verdict(
            "careful",
            f"Do not trust these masks yet: on {unknown:.0%} of the images, the classifier does not recognise a class "
            "of the label.",
            better,
        )
    return None


def _judge_unmeasured(run: Run, figures: Figures) -> Verdict:
    correct = f"correct the masks of about {FEW_MASKS} images and measure ({_correcting(run)})."
    export = export_command(run, "")
    if figures.to_measure_again:
        return Verdict(
            "careful",
            "No figure speaks against these masks, but the comparison with masks drawn by hand is outdated: "
            f"{MASKS_CHANGED}.",
            "Measure again, then write the report again.",
            figures.to_measure_again,
        )
    if figures.is_on_trained_masks and not figures.measured:
        return Verdict(
            "careful",
            "Nobody knows yet how good these masks are: the network was measured only on masks that it was trained on.",
            f"Look at the pictures, then {correct} Take images that the network was not trained on.",
            export,
        )
    if figures.mean_precision is None and figures.unrecognised is None and not figures.measured:
        return Verdict(
            "careful",
            "No figures judge these masks: no classifier looked at these images, and no mask drawn by hand is there.",
            f"Look at the pictures: an object that is of none of the run's classes gets one of them. Then {correct}",
            export,
        )
    sentence = "No figure speaks against these masks, but no mask drawn by hand was there to compare them with."
    if best := figures.measured:
        each = [f"the {labels} have mIoU {value:.2f}" for labels, value in ((best.labels, best.mean_iou), *best.others)]
        sentence = (
            "Nobody knows yet how good these masks are, because few were compared with masks drawn by hand: "
            f"{listed(each)} on {best.images}."
        )
    return Verdict("careful", sentence, f"Look at the pictures, then {correct}", export)


def _correcting(run: Run) -> str:
    """The page about correcting the masks of a run."""
    return CORRECTING_NEW if origin_of(run) else CORRECTING


def chance_of(run: Run, num_validated: int | None) -> float | None:
    """The mAP that random scores have on average on the images of the classifier's validation.

    Images that were added after the training are not among them. An image that the validation could not read is.

    Args:
        num_validated: the number of validated images; None if it is not known.

    Returns:
        None if nothing was validated, or if the record of the training does not say on which images.
    """
    recorded, manifest = run.step("classifier").fingerprint() or {}, run.manifest()
    splits = recorded.get("data", {}).get("val_splits")
    if not num_validated or not splits:
        return None
    rows = image_list(manifest, splits).rows
    images = ImageList(manifest, rows[rows < manifest.num_images - num_unseen(run, "classifier")])
    counts = images.class_counts()
    each = [chance_precision(int(count), len(images)) for count in counts if count]
    return sum(each) / len(each) if each else None


def best_measured(measured: Sequence[Measured]) -> BestMasks | None:
    """The best masks on the largest group of images with current metrics.

    A network's figures on masks that it was trained on do not count.
    """
    groups: list[tuple[Measured, list[Mapping[str, Any]]]] = []
    for each in measured:
        current = [
            record
            for record, note in zip(each.metrics, each.notes, strict=True)
            if not note
            and record["labels"] in ("predictions", "pseudo-labels")
            and record["mean_iou"] is not None
            and not record.get("trained_on")
        ]
        if current and each.resolution == "image" and not each.is_trial:
            groups.append((each, current))
    if not groups:
        return None
    largest, records = max(groups, key=lambda group: group[0].num_images)
    (labels, mean_iou), *others = sorted(
        ((record["labels"], record["mean_iou"]) for record in records), key=lambda each: -each[1]
    )
    return BestMasks(labels, mean_iou, largest.num_images, largest.splits, largest.part, tuple(others))


def is_on_trained_masks(measured: Sequence[Measured]) -> bool:
    """Whether current metrics of the network are on masks that it was trained on."""
    return any(
        bool(record.get("trained_on")) and not note
        for each in measured
        for record, note in zip(each.metrics, each.notes, strict=True)
    )
