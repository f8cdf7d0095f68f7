"""What the figures of a run mean together: whether to trust its masks, and what to do next. One sentence each.

The first rule that applies decides. The limits are rough: they separate runs that failed from runs worth a look.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Literal

from cluster.words import listed, plural
from ficklenet.metrics import chance_precision
from jobs.reporting.best_masks import BETTER, DIGITS, HALF, KINDS, MeasuredMasks, Unmeasured
from jobs.run.directory import Run
from jobs.run.origin import origin_of
from jobs.run.selection import FEW_MASKS
from jobs.run.trial import is_trial, one_label_remedy
from jobs.steps.added_images import num_unseen
from jobs.steps.evaluation_state import MASKS_CHANGED
from jobs.training.image_list import ImageList, image_list
from storage.masks import SPECK_PIXELS

WEAK, FAIR = 0.3, 0.7
"""Shares of the way from chance to 1 of the validation mAP. Below the first, the classifier has learnt little."""

MANY_UNRECOGNISED = 0.25
NAMED = 3  # classes that a sentence names

TOO_GOOD = 0.98
"""An mIoU that no network reaches on masks which were drawn by hand: two people who draw the same mask reach less."""

GUIDE = "docs/report.md"
CORRECTING, CORRECTING_NEW = "docs/tutorial-cvat.md", "docs/howto-new-images.md"  # the second in a run of new images


@dataclass(frozen=True)
class Figures:
    """The figures that decide.

    Attributes:
        mean_precision: the classifier's validation mAP, in [0, 1]; None if there is none.
        chance: the mAP of random scores on the same images; None if it is not known.
        unrecognised: the share of images with a label that the classifier does not recognise; None without maps.
        one_label: the only label in all predictions; "" if there are several, or no predictions.
        measured: the masks that were measured; None if there are none.
        unmeasured: the images that could still be measured.
        is_on_trained_masks: whether the network was measured on masks that it was trained on.
        to_measure_again: the command that measures again, if figures are outdated; else "".
        why_again: why they are outdated, such as `MASKS_CHANGED`.
        has_masks: whether the run has seeds, pseudo-labels or predictions.
        has_pseudo_labels: whether they are complete.
        corrected_from: the steps from whose masks the given ones were corrected; none if it is not known.
    """

    mean_precision: float | None = None
    chance: float | None = None
    unrecognised: float | None = None
    one_label: str = ""
    measured: MeasuredMasks | None = None
    unmeasured: Unmeasured = field(default_factory=Unmeasured)
    is_on_trained_masks: bool = False
    to_measure_again: str = ""
    why_again: str = MASKS_CHANGED
    has_masks: bool = False
    has_pseudo_labels: bool = False
    corrected_from: Set[str] = frozenset()

    @property
    def proposed(self) -> str:
        """The step whose masks to use; "" for the finest masks that the run has."""
        if self.one_label:
            return "pseudo_labels"
        return KINDS[self.measured.best.labels] if self.measured else ""

    @property
    def why_proposed(self) -> str:
        """Why these masks are proposed and not the others, as a sentence; "" if they are the finest."""
        if self.one_label or not self.measured:
            return ""
        if self.proposed == "pseudo_labels" and not self.measured.others and self.is_on_trained_masks:
            return (
                "The predictions were measured only on masks that the network was trained on, so they are not judged."
            )
        return self.measured.why


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
            export = export_command(run, figures)
        return Verdict("bad", sentence, advice, export)
    masks = figures.measured
    if masks and (masks.beaten_by or (masks.judged.num_images >= FEW_MASKS and not figures.to_measure_again)):
        return _judge_measured(run, figures, masks)
    is_enough = masks is not None and masks.judged.num_images >= FEW_MASKS
    return (None if is_enough else _judge_classifier(figures)) or _judge_unmeasured(run, figures)


def export_command(run: Run, figures: Figures) -> str:
    """The command that exports the proposed masks with objects, without specks."""
    labels = ["--labels", figures.proposed] if figures.proposed == "pseudo_labels" else []
    return run.command("export_labels", "--format", "cvat", *labels, "--min-object-pixels", f"{SPECK_PIXELS}")


def _judge_measured(run: Run, figures: Figures, masks: MeasuredMasks) -> Verdict:
    mean_iou, export = masks.judged.mean_iou, export_command(run, figures)
    figure = f"compared with the given masks, {masks.in_words}"
    is_new, guide = bool(origin_of(run)), _correcting(run)
    correct = (
        f"Correct {'more of them' if is_new else 'the images of the list “Look at these first”'}, and train on them "
        f"({guide})."
    )
    if masks.beaten_by:
        return Verdict(
            "bad",
            f"Do not use these masks: masks that need no network are better: {masks.beaten_by}.",
            _in_turn(_proposal(figures, "Start corrections from"), _favoured(figures), correct),
            export,
        )
    if round(mean_iou, DIGITS) < HALF:
        return Verdict(
            "bad",
            f"Correct these masks before you use them: {figure}, so a typical mask of the {masks.judged.labels} shares "
            "less than half of its pixels with its object.",
            _in_turn(_proposal(figures, "Start corrections from"), _favoured(figures), correct),
            export,
        )
    if mean_iou > TOO_GOOD:
        return Verdict(
            "careful",
            f"Nobody knows yet how good these masks are: {figure}, so these masks are probably the run's own.",
            f"Draw or correct the masks of {FEW_MASKS} images by hand and measure again ({guide}).",
        )
    return Verdict(
        "good",
        _in_turn(f"These masks are good enough to start from: {figure}.", _weak_classes(masks.judged.iou)),
        _in_turn(
            _proposal(figures, "Use"),
            _favoured(figures),
            f"Look at {'the pictures' if is_new else 'the list “Look at these first”'}, and correct the masks that "
            "matter to you.",
        ),
        export,
    )


def _proposal(figures: Figures, verb: str) -> str:
    """Which masks to take and why, as a sentence that begins with what to do; "" if they are the finest."""
    if figures.why_proposed != BETTER:
        return figures.why_proposed
    return f"{verb} the pseudo-labels: they {BETTER.removeprefix('The pseudo-labels ')}"


def _favoured(figures: Figures) -> str:
    """A sentence on the figures of the kinds from which the given masks were corrected; "" if it is not known."""
    masks = figures.measured
    kinds = [each.labels for each in (masks.best, *masks.others)] if masks else []
    favoured = [each for each in kinds if KINDS[each] in figures.corrected_from]
    if not favoured:
        return ""
    start = f"The given masks were corrected from exported masks ({listed(favoured)}): what nobody changed agrees, so"
    if len(favoured) > 1:
        return f"{start} these figures are somewhat too good, and the better one may be the one that you corrected."
    compared = ", also beside the others" if len(kinds) > 1 else ""
    return f"{start} their figure is somewhat too good{compared}."


def _weak_classes(iou: Mapping[str, float]) -> str:
    """A sentence that names the classes whose masks are mostly wrong; "" if there are none."""
    weak = sorted((value, name) for name, value in iou.items() if round(value, 2) < HALF)
    if not weak:
        return ""
    named = [f"{name} ({value:.2f})" for value, name in weak[:NAMED]]
    more = [plural(len(weak) - NAMED, "more class")] if len(weak) > NAMED else []
    return f"But the IoU is below {HALF} for {listed([*named, *more])}."


def _judge_classifier(figures: Figures) -> Verdict | None:
    """The verdict if the classifier is too weak; else None."""
    score, chance, unknown = figures.mean_precision, figures.chance, figures.unrecognised
    better = "Check the image labels, give more photographs of each class, and start again with --restart classifier."
    if score is not None and chance is not None and round(score, 2) < round(fair := chance + FAIR * (1 - chance), 2):
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
    left, export, more = figures.unmeasured, export_command(run, figures), _how_many_more(run, figures)
    if figures.to_measure_again or left.num_masks:
        if figures.to_measure_again:
            sentence = (
                "Nobody knows yet how good these masks are, because their comparison with masks drawn by hand is "
                f"outdated: {figures.why_again}."
            )
        else:
            nothing_known = "No figure speaks against these masks, but"
            start = f"{_nobody_knows(figures.measured)} And" if figures.measured else nothing_known
            are = "is" if left.num_masks == 1 else "are"
            sentence = f"{start} {plural(left.num_masks, 'image')} with a mask drawn by hand {are} not measured yet."
        how = " again" if figures.to_measure_again else " with these too" if figures.measured else ""
        measure = f"Measure{how}, then write the report again."
        advice = _in_turn(measure, f"Also {more}" if more else "")
        return Verdict("careful", sentence, advice, figures.to_measure_again or left.command)
    correct = f"Look at the pictures, then {more}"
    if figures.is_on_trained_masks and not figures.measured:
        return Verdict(
            "careful",
            "Nobody knows yet how good these masks are: the network was measured only on masks that it was trained on.",
            correct,
            export,
        )
    if figures.mean_precision is None and figures.unrecognised is None and not figures.measured:
        return Verdict(
            "careful",
            "No figures judge these masks: no classifier looked at these images, and no mask drawn by hand is there.",
            f"Look at the pictures: an object that is of none of the run's classes gets one of them. Then {more}",
            export,
        )
    sentence = "No figure speaks against these masks, but no mask drawn by hand was there to compare them with."
    if figures.measured:
        sentence = _nobody_knows(figures.measured)
    proposal = _in_turn(_proposal(figures, "Start corrections from"), _favoured(figures))
    return Verdict("careful", sentence, _in_turn(proposal, correct), export)


def _nobody_knows(masks: MeasuredMasks) -> str:
    return (
        "Nobody knows yet how good these masks are, because few were compared with masks drawn by hand: "
        f"{masks.in_words}."
    )


def _how_many_more(run: Run, figures: Figures) -> str:
    """What to correct and measure until the masks can be judged; "" if enough images have a mask."""
    left = figures.unmeasured
    known = left.num_masks + (figures.measured.most_measured.num_images if figures.measured else 0)
    if (missing := FEW_MASKS - known) <= 0:
        return ""
    if origin_of(run) and left.num_others < missing:  # no images can be added to it
        return (
            f"correct the masks that are wrong ({_correcting(run)}). The run has fewer than {FEW_MASKS} images, too "
            "few to judge its masks."
        )
    images = plural(missing, "more image" if known else "image")
    where = (f" of {left.where}" if left.where else "") + (f" ({left.why})" if left.why else "")
    few = ""
    if left.num_others < missing:
        there = f"only {plural(left.num_others, 'such image')} without one" if left.num_others else "no such image"
        few = f" The run has {there}, so add images to it ({CORRECTING_NEW})."
    return f"correct the masks of {images}{where} and measure ({_correcting(run)}).{few}"


def _in_turn(*sentences: str) -> str:
    return " ".join(filter(None, sentences))


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
