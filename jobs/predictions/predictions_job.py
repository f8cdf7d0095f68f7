"""The step `predictions`: a trained segmentation network predicts a mask for every image of some splits."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from cluster.connect import Connection
from cluster.fanout import Payload, Stages
from ficklenet.crf import require_pydensecrf
from jobs.predictions.prediction_stages import PredictionStages, Predictor
from jobs.run.directory import Run
from jobs.run.fingerprints import step_fingerprint
from jobs.run.selection import units_of_step
from jobs.run.steps import BY_NAME
from jobs.run.trial import one_label_remedy
from jobs.steps.compute import precision_name, resolved_device
from jobs.steps.launch import UnitPlan
from jobs.steps.networks import require_segmenter
from jobs.steps.unit_driver import UnitStepJob
from storage.manifest import Manifest
from storage.units import Unit

ALGORITHM_VERSION = 2  # raise it when code between an image's bytes and its stored labels changes results
NAMED = 8  # values of masks that are printed with their names


def make_job(run: Run, connection: Connection) -> UnitStepJob:
    """The predictions of the configured network.

    Raises:
        NotYet: the network is not trained.
        ValueError: it was trained for other classes, or the predicted splits have no usable image.
    """
    config = run.config.predictions
    if config.refine:
        require_pydensecrf()
    spec = require_segmenter(run, config.network, "predict_masks")
    device = resolved_device(config.device, connection, "predictions.device")
    stages = PredictionStages(run, spec, device)
    seen = SeenLabels(run)
    return UnitStepJob(
        title="predictions",
        step=stages.step,
        fingerprint=step_fingerprint(
            run,
            "predictions",
            algorithm_version=ALGORITHM_VERSION,
            upstream=[config.network],
            images=run.config.images.limits,
            device=device,
            precision=precision_name(stages.precision),
            batch_size=stages.batch_size,
        ),
        units=units_to_predict(run),
        stages=Stages(partial(Predictor, stages), stages.read, stages.write),
        command=run.step_command("predictions"),
        device=device,
        trial=stages.trial,
        observe=seen.add,
        finish=seen.describe,
    )


@dataclass
class SeenLabels:
    """The labels that occur in a launch's predictions, to say what they mean, and if the network labels all alike."""

    run: Run
    labels: set[int] = field(default_factory=set)

    def add(self, result: Payload) -> None:
        self.labels.update(result["labels"])

    def describe(self, plan: UnitPlan) -> None:
        """Prints where the masks are, and a warning if this launch predicted everything and only one label occurs."""
        names = ("background", *self.run.manifest().class_names)
        values = ", ".join(f"{value} {name}" for value, name in enumerate(names[:NAMED]))
        more = f", and so on to {len(names) - 1} {names[-1]}" if len(names) > NAMED else ""
        print(f"predictions: masks are in {self.run.data('predictions')}/labels; values: {values}{more}")
        if len(self.labels) != 1 or len(plan.missing) != len(plan.units):
            return
        print(f"predictions: every pixel is {names[next(iter(self.labels))]}. {one_label_remedy(self.run.config)}")


def units_to_predict(run: Run) -> list[Unit]:
    """The units with images of the predicted splits.

    Raises:
        ValueError: there are none.
    """
    manifest, splits = run.manifest(), run.config.predicted_splits
    _require_usable(manifest, splits)
    units = units_of_step(BY_NAME["predictions"], manifest, run.config)
    if not units:
        known = sorted(manifest.splits())
        raise ValueError(
            f"predict_masks: masks are predicted for the images of {_in_words(splits)}, but no image is in there. The "
            f"run has {_in_words(known)}. To predict all its images: --set predictions.splits={','.join(known)}"
        )
    return units


def _in_words(splits: Sequence[str]) -> str:
    """'the splits train, val', with images that have no split named as such."""
    named = [name for name in splits if name]
    words = [f"the {'split' if len(named) == 1 else 'splits'} {', '.join(named)}"] if named else []
    return " and ".join([*words, *(["images without a split"] if "" in splits else [])])


def _require_usable(manifest: Manifest, splits: Sequence[str]) -> None:
    """Refuses splits in which no image is usable according to the manifest."""
    first = ""
    for table in manifest.iter_tables(["split", "problem"]):
        problems = table["problem"].filter(pc.is_in(table["split"], pa.array(splits, pa.string())))
        if problems.null_count:
            return
        first = first or (problems[0].as_py() if len(problems) else "")
    if first:
        reason = f"{first}{'' if first.endswith('?') else '.'}"
        raise ValueError(
            f"predict_masks: no image of {_in_words(splits)} can be used (the first: {reason}) Correct the table and "
            "prepare it again; if steps were started, use another --run."
        )
