"""Whether the pseudo-labels are better masks than the segmentation network's predictions."""

from collections.abc import Sequence

from ficklenet.metrics import label_metrics
from jobs.evaluation.metrics import MeasuredLabels
from jobs.run.directory import Run


def better_labels(run: Run, measured: Sequence[MeasuredLabels]) -> str:
    """If the pseudo-labels are better than the network on the same images, a sentence that says so; else ''."""
    figures = {each.labels: label_metrics(each.matrix).mean_iou for each in measured if each.resolution == "image"}
    pseudo, predicted = figures.get("pseudo-labels"), figures.get("predictions")
    if pseudo is None or predicted is None or not pseudo > predicted:
        return ""
    command = run.command("export_labels", "--format", "png", "--labels", "pseudo_labels")
    return (
        f"on {', '.join(measured[0].splits)} the pseudo-labels are better masks (mIoU {pseudo:.3f}) than the network's "
        f"predictions ({predicted:.3f}). For images with labels, prefer the pseudo-labels: they are in "
        f"{run.data('pseudo_labels') / 'labels'}, and '{command}' exports them."
    )
