"""What the metrics of a run say about its masks: the figures of each kind, which kind is better, what is not measured.

Each image counts once, in all splits together. These figures do not count: figures of earlier masks or networks, a
network's figures on masks that it was trained on, and figures of a tune part on which settings were tried.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster.words import listed, plural
from ficklenet.metrics import LabelMetrics, label_metrics
from jobs.reporting.measured import Measured
from jobs.run.directory import Run
from jobs.run.selection import FEW_MASKS, Selection, measurable_splits
from jobs.run.trained_masks import splits_with_trained_masks
from jobs.steps.evaluation_state import evaluate_commands, read_metrics, tried_splits

KINDS = {"predictions": "predictions", "pseudo-labels": "pseudo_labels"}
"""The masks that can be judged, by their name in the metrics, with their step; the finest first."""

BETTER = "The pseudo-labels are better than the predictions on the same images."

DIGITS = 3
"""Figures that are equal in so many digits are equal."""

TRIVIAL = {
    "baseline: all ones": "masks that cover the whole image",
    "baseline: centred Gaussian": "a round spot in the middle of each image",
}


HALF = 0.5  # mIoU, or the IoU of a class: below it, masks are mostly wrong


@dataclass(frozen=True)
class Group:
    """The figure of one kind of masks on some images."""

    mean_iou: float
    num_images: int
    splits: tuple[str, ...]
    part: str = "all"

    @property
    def images(self) -> str:
        """The number of images and which they are, such as "3 images of val"."""
        splits = listed([split or "no split" for split in self.splits]) if any(self.splits) else ""
        part = "" if self.part == "all" else f"the {self.part} part"
        return " of ".join(filter(None, (plural(self.num_images, "image"), part, splits)))


@dataclass(frozen=True)
class Kind:
    """One kind of masks, such as "pseudo-labels".

    Attributes:
        mean_iou: over the pixels of all groups together.
        iou: the IoU of the background and each class, by name, over the same pixels; NaN for a class without any.
    """

    labels: str
    mean_iou: float
    groups: tuple[Group, ...]
    iou: Mapping[str, float] = field(default_factory=dict)

    @property
    def num_images(self) -> int:
        return sum(group.num_images for group in self.groups)

    def in_words(self, digits: int = 2) -> str:
        """Such as "the predictions have mIoU 0.56 over all pixels (0.58 on 16 images and 0.53 on 6 images of val)"."""
        start = f"the {self.labels} have mIoU {self.mean_iou:.{digits}f}"
        if len(self.groups) == 1:
            return f"{start} on {self.groups[0].images}"
        groups = [f"{group.mean_iou:.{digits}f} on {group.images}" for group in self.groups]
        return f"{start} over all pixels ({listed(groups)})"


@dataclass(frozen=True)
class MeasuredMasks:
    """The measured kinds of masks.

    Attributes:
        best: the kind with the highest mIoU on the images of both kinds; without such images, that with more images.
            Pseudo-labels with too few images to judge them are not the best beside predictions with enough.
        others: the other kinds.
        why: `BETTER` if the pseudo-labels are the best kind though there are figures of the predictions; or why the
            better kind is not, in a sentence.
        beaten_by: if all kinds are worse than masks that need no network, these in words with all figures; else "".
    """

    best: Kind
    others: tuple[Kind, ...] = ()
    why: str = ""
    beaten_by: str = ""

    @property
    def judged(self) -> Kind:
        """The best kind if it was measured on enough images to judge it, else the kind with most images."""
        return self.best if self.best.num_images >= FEW_MASKS else self.most_measured

    @property
    def most_measured(self) -> Kind:
        """The kind that was measured on most images, which needs the fewest more to be judged."""
        return max((self.best, *self.others), key=lambda kind: kind.num_images)

    @property
    def in_words(self) -> str:
        kinds = (self.best, *self.others)
        digits = digits_apart([HALF, *(kind.mean_iou for kind in kinds)])
        return listed([kind.in_words(digits) for kind in kinds])


def digits_apart(figures: Sequence[float]) -> int:
    """The digits that tell figures apart: 2, or `DIGITS` if two different ones are equal in 2 digits."""
    return 2 if len({round(each, 2) for each in figures}) == len({round(each, DIGITS) for each in figures}) else DIGITS


@dataclass(frozen=True)
class Unmeasured:
    """Images that could still be measured.

    Attributes:
        num_masks: the number of those that have a mask; `command` measures them.
        num_others: the number of those without a mask.
        where: their splits and parts in words; "" if there are none, or if no image has a split.
        why: why other images do not count; "" if all count.
    """

    num_masks: int = 0
    num_others: int = 0
    command: str = ""
    where: str = ""
    why: str = ""


Records = Mapping[tuple[tuple[str, ...], str], Mapping[str, Any]]  # by splits and part


def measured_masks(measured: Sequence[Measured]) -> MeasuredMasks | None:
    """The masks with current figures at image resolution; None without such figures."""
    tried = {split for each in measured if each.is_trial for split in each.splits}

    def records(labels: str, resolution: str) -> Records:
        """The records of one kind of labels that count; each image is in one of them."""
        current = [
            (each, record)
            for each in measured
            if each.resolution == resolution
            and not each.is_trial
            and not (each.part == "all" and tried & {*each.splits})
            for record, note in zip(each.metrics, each.notes, strict=True)
            if record["labels"] == labels and not note and record["mean_iou"] is not None
            if not record.get("trained_on")
        ]
        chosen: dict[tuple[tuple[str, ...], str], Mapping[str, Any]] = {}
        for each, record in sorted(current, key=lambda pair: -pair[0].num_images):
            if not any({*splits} & {*each.splits} for splits, _ in chosen):
                chosen[each.splits, each.part] = record
        return chosen

    found = {labels: chosen for labels in KINDS if (chosen := records(labels, "image"))}
    if not found:
        return None
    shared = set.intersection(*(set(records_of) for records_of in found.values()))
    order = sorted(found, key=lambda labels: -sum(record["num_images"] for record in found[labels].values()))
    if shared:
        order = sorted(found, key=lambda labels: -round(_mean_iou(found[labels], shared), DIGITS))
    kinds, why = [_kind(labels, found[labels]) for labels in order], ""
    if shared and order == ["pseudo-labels", "predictions"]:
        why = BETTER
    better, number = kinds[0].labels, kinds[0].num_images
    if number < FEW_MASKS <= kinds[-1].num_images:
        why = f"The {better} are better on the images of both, but only {plural(number, 'image')} could measure them"
        is_why = better == "predictions" and is_on_trained_masks(measured)
        why += ", because the network was trained on the masks of the others." if is_why else "."
        if better == "pseudo-labels":  # the predictions are finer
            kinds.reverse()
    is_network_unknown = "predictions" not in found and is_on_trained_masks(measured)
    beaten_by = "" if is_network_unknown else _beaten_by(order, records)
    return MeasuredMasks(kinds[0], tuple(kinds[1:]), why, beaten_by)


def _kind(labels: str, records: Records) -> Kind:
    groups = [Group(each["mean_iou"], each["num_images"], *images) for images, each in records.items()]
    metrics, names = _metrics(records, set(records)), next(iter(records.values()))["iou"]
    return Kind(labels, metrics.mean_iou, tuple(groups), dict(zip(names, metrics.iou, strict=True)))


def _mean_iou(records: Records, images: set[tuple[tuple[str, ...], str]]) -> float:
    return _metrics(records, images).mean_iou


def _metrics(records: Records, images: set[tuple[tuple[str, ...], str]]) -> LabelMetrics:
    """The metrics over the pixels of several groups of images, from the sum of their confusion matrices."""
    total = sum(np.array(record["confusion_matrix"]) for key, record in records.items() if key in images)
    return label_metrics(np.asarray(total))


def _beaten_by(kinds: Sequence[str], records: Callable[[str, str], Records]) -> str:
    """The trivial baseline that is better than all kinds of masks, in words with the figures; else ""."""
    found = []
    for labels in kinds:
        own = records(labels, "map")
        baselines = {name: each for name in TRIVIAL if (each := records(name, "map")) and own and set(each) >= set(own)}
        if not baselines:
            return ""
        best = max(baselines, key=lambda name: _mean_iou(baselines[name], set(own)))
        mean_iou, baseline = _mean_iou(own, set(own)), _mean_iou(baselines[best], set(own))
        if round(mean_iou, DIGITS) >= round(baseline, DIGITS):
            return ""
        digits, images = digits_apart([mean_iou, baseline]), plural(_kind(labels, own).num_images, "image")
        found.append(
            f"{TRIVIAL[best]} {'have' if best.endswith('ones') else 'has'} mIoU {baseline:.{digits}f}, the {labels} "
            f"have only {mean_iou:.{digits}f} on the same {images} at the size of the maps"
        )
    return found[0]


def is_on_trained_masks(measured: Sequence[Measured]) -> bool:
    """Whether current metrics of the network are on masks that it was trained on."""
    return any(
        bool(record.get("trained_on")) and not note
        for each in measured
        for record, note in zip(each.metrics, each.notes, strict=True)
    )


def unmeasured_images(run: Run, masks: MeasuredMasks | None) -> Unmeasured:
    """The images on which the most measured masks could still be measured; without figures, those of any masks."""
    kind = masks.most_measured if masks else None
    if kind and kind.num_images >= FEW_MASKS:
        return Unmeasured()  # they can be judged
    manifest, data = run.manifest(), run.config.data
    has_pseudo_labels = run.step("pseudo_labels").fingerprint() is not None
    is_of_network = kind.labels == "predictions" if kind else not has_pseudo_labels
    seen = set(splits_with_trained_masks(run)) if is_of_network else set[str]()
    splits = [split for split in sorted(manifest.splits()) if data.role_of(split) != "test" and split not in seen]
    if is_of_network:
        recorded = (run.step("predictions").fingerprint() or {}).get("predictions", {}).get("splits", splits)
        splits = [split for split in splits if split in recorded]
    tried = tried_splits(read_metrics(run)) & {*splits} - {*data.val_splits}
    wanted = [Selection((split,), "report" if split in tried else "all") for split in splits]
    done = [Selection(group.splits, group.part) for group in kind.groups] if kind else []  # type: ignore[arg-type]
    with_mask, num_others = dict.fromkeys(splits, 0), 0
    for batch in manifest.iter_columns(["image_id", "split", "mask_uri", "problem"]):
        for image_id, split, mask_uri, problem in zip(*batch.values(), strict=True):
            if problem or not any(each.includes(image_id, split) for each in wanted):
                continue
            if not mask_uri:
                num_others += 1
            elif not any(each.includes(image_id, split) for each in done):
                with_mask[split] += 1
    groups = [[split for split in group if with_mask.get(split)] for group in measurable_splits(manifest, run.config)]
    names = [f"the report part of {split or 'no split'}" if split in tried else split or "no split" for split in splits]
    reasons = [f"the network was trained on the masks of {listed(sorted(seen))}"] if seen else []
    if tried:
        reasons.append(f"settings were tried on the tune part of {listed(sorted(tried))}")
    return Unmeasured(
        sum(with_mask.values()),
        num_others,
        evaluate_commands(run, list(filter(None, groups))),
        (" or ".join(names) if any(splits) or tried else "") if splits else "another split",
        listed(reasons),
    )
