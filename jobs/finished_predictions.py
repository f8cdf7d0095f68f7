"""The finished predictions of a run, as later jobs read them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.predict_masks import units_to_predict
from jobs.prediction_stages import prediction_settings
from jobs.run import Run
from jobs.trained_segmenter import require_segmenter
from storage.manifest import Manifest
from storage.steps import Receipt, Step, differences, require_complete
from storage.units import Unit


@dataclass(frozen=True)
class FinishedPredictions:
    """What is known of complete predictions before any is read.

    Attributes:
        fingerprint: of the step that made them.
        units: those that hold an image of the predicted splits.
        receipts: of the units, by index.
    """

    fingerprint: Mapping[str, Any]
    units: Sequence[Unit]
    receipts: Mapping[int, Receipt]


def require_predictions(run: Run, manifest: Manifest, asked_by: str) -> FinishedPredictions:
    """The run's predictions.

    Args:
        asked_by: the job, for the message.

    Raises:
        ValueError: they are incomplete, or not of this run's network with this launch's settings.
    """
    segmenter = require_segmenter(run, manifest.class_names, asked_by, run.config.predictions.network)
    step, units = Step(run.location / "predictions"), units_to_predict(run, manifest)
    command = run.command("predict_masks")
    fingerprint = step.fingerprint() or {}
    wanted = {"segmenter": segmenter.sha256, "predictions": prediction_settings(run.config)}
    recorded = {name: fingerprint.get(name) for name in wanted}
    if fingerprint and recorded != wanted:
        raise ValueError(
            f"{asked_by}: {step.location} was made with other settings ({differences(recorded, wanted)}). "
            f"Give the same, use another run, or make it anew with '{command} --restart predictions'."
        )
    require_complete(step, units, manifest, asked_by, command)
    return FinishedPredictions(fingerprint, units, step.receipts())
