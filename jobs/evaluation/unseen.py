"""Which images measure a network that was trained on masks: those whose masks it has not seen."""

from collections.abc import Sequence

from jobs.evaluation.metrics import MeasuredLabels
from jobs.run.directory import Run
from jobs.run.fingerprints import reads_current_results
from jobs.run.selection import Part, measurable_splits
from jobs.run.trained_masks import splits_with_trained_masks
from jobs.steps.evaluation_state import evaluate_command


def unseen_splits(run: Run, part: Part | None) -> list[str]:
    """The splits to measure by default; empty for the training splits.

    If the network was trained on masks of training splits, these are the other training splits with masks, or else the
    validation splits with masks.

    Args:
        part: the part that the user asked for; only training splits have parts, so with one they are measured.
    """
    seen = splits_with_trained_masks(run)
    if not seen or part not in (None, "all") or not reads_current_results(run, "predictions"):
        return []
    groups = measurable_splits(run.manifest(), run.config)
    unseen = next(filter(None, ([split for split in group if split not in seen] for group in groups)), [])
    if unseen:
        print(
            f"evaluate: measures {', '.join(unseen)}, because the segmentation network was trained on the masks of "
            f"{', '.join(seen)}. '--split {seen[0]}' measures these.",
            flush=True,
        )
    return unseen


def trained_masks_warning(run: Run, measured: Sequence[MeasuredLabels]) -> str:
    """A warning that a network was measured on masks which it was trained on, and what to do; "" if it was not."""
    trained = [each for each in measured if each.trained_on]
    if not trained:
        return ""
    seen = trained[0].trained_on
    groups = measurable_splits(run.manifest(), run.config)
    unseen = [split for group in groups for split in group if split not in splits_with_trained_masks(run)]
    remedy = (
        f"To measure it: '{evaluate_command(run, unseen[:1])}'."
        if unseen
        else "To measure it, give masks to validation images; training does not read these."
    )
    labels = " and ".join(dict.fromkeys(each.labels for each in trained))
    return (
        f"the segmentation network was trained on the masks of {', '.join(seen)}, so the figures of {labels} on these "
        f"images do not show how good its masks of other images are. {remedy}"
    )
