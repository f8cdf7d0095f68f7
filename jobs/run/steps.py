"""The table of steps: the steps of a run in their order, and which step reads which.

All code that loops over steps uses this table: the pipeline, status, report, dry runs, restarts, refusals, the command
`ficklenet`, the search for outdated steps, and the table in docs/architecture.md. To add a step, add a row here, a
module with `make_job`, and a script.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from jobs.run.config_keys import Config

Kind = Literal["units", "training", "metrics"]


@dataclass(frozen=True)
class StepRow:
    """One step.

    Attributes:
        name: the name of its folder in the run, and of `--restart NAME`.
        script: `jobs/<script>.py` runs it.
        command: `ficklenet <command>` runs it too.
        section: its section of the configuration.
        upstream: the steps that it may read; the configuration decides which of them it reads.
        kind: "units": units of images that can be resumed; "training": Ray Train; "metrics": measured against masks.
        module: `jobs.<module>` has `make_job(run, connection)`, which says what to do; "" for metrics.
        columns: those of the manifest that it reads. A segmentation network reads masks too if its settings say so.
        is_of_splits: whether it covers only the images of `predictions.splits`.
        copies: whether the results of a unit's first images are copied if other images are added to the unit; otherwise
            the whole unit is computed again.
        is_optional: the pipeline runs it only if a later step reads it.
        actors_per_gpu: the most actors that share a GPU: several if an actor works mostly on its CPU.
    """

    name: str
    script: str
    command: str
    section: str
    upstream: tuple[str, ...]
    kind: Kind
    module: str = ""
    columns: tuple[str, ...] = ()
    is_of_splits: bool = False
    is_optional: bool = False
    copies: bool = True
    actors_per_gpu: int = 1

    @property
    def title(self) -> str:
        """The name for people: 'pseudo-labels'."""
        return self.name.replace("_", "-")

    @property
    def device_key(self) -> str:
        """The key that says on which device it computes; "" if it always uses CPUs."""
        sections = {"cells": "maps", "refined": "maps", "seeds": "", "pseudo_labels": "", "": ""}
        section = sections.get(self.section, self.section)
        return f"{section}.device" if section else ""

    @property
    def counts(self) -> Literal["images", "epochs", "metrics"]:
        """The unit in which its progress is counted."""
        return {"units": "images", "training": "epochs", "metrics": "metrics"}[self.kind]  # type: ignore[return-value]


TRAINING_COLUMNS = ("image_id", "uri", "labels", "split", "problem")

STEPS = (
    StepRow(
        "classifier",
        "train_ficklenet",
        "train",
        "classifier",
        (),
        "training",
        "training.classifier_job",
        TRAINING_COLUMNS,
    ),
    StepRow(
        "maps",
        "generate_maps",
        "maps",
        "maps",
        ("classifier",),
        "units",
        "maps.maps_job",
        ("image_id", "uri", "labels", "problem"),
    ),
    StepRow(
        "cells",
        "learn_cells",
        "cells",
        "cells",
        ("classifier", "maps"),
        "units",
        "maps.cells_job",
        ("image_id", "uri", "labels", "split", "saliency_uri", "problem"),
        is_optional=True,
        actors_per_gpu=4,
    ),
    StepRow(
        "refined",
        "refine_maps",
        "refine",
        "refined",
        ("classifier", "maps", "cells"),
        "units",
        "maps.refined_job",
        ("image_id", "uri", "problem"),
        is_optional=True,
        actors_per_gpu=4,
    ),
    StepRow(
        "seeds",
        "aggregate_seeds",
        "seeds",
        "seeds",
        ("maps", "refined"),
        "units",
        "maps.seeds_job",
        ("image_id", "saliency_uri"),
        copies=False,
    ),
    StepRow(
        "pseudo_labels",
        "make_pseudo_labels",
        "pseudo-labels",
        "pseudo_labels",
        ("maps", "refined"),
        "units",
        "maps.pseudo_labels_job",
        ("image_id", "uri", "saliency_uri", "problem"),
    ),
    StepRow(
        "segmenter",
        "train_segmentation",
        "segment",
        "segmenter",
        ("classifier", "seeds"),
        "training",
        "training.segmenter_job",
        TRAINING_COLUMNS,
    ),
    StepRow(
        "retrained",
        "retrain_segmentation",
        "retrain",
        "segmenter",
        ("classifier", "segmenter"),
        "training",
        "training.retrained_job",
        TRAINING_COLUMNS,
        is_optional=True,
    ),
    StepRow(
        "predictions",
        "predict_masks",
        "predict",
        "predictions",
        ("segmenter", "retrained"),
        "units",
        "predictions.predictions_job",
        ("image_id", "uri", "split", "problem"),
        is_of_splits=True,
    ),
    StepRow(
        "evaluation",
        "evaluate",
        "evaluate",
        "",
        ("maps", "refined", "seeds", "pseudo_labels", "predictions"),
        "metrics",
    ),
)

BY_NAME = {row.name: row for row in STEPS}
UNIT_STEPS = tuple(row for row in STEPS if row.kind == "units")
TRAININGS = tuple(row for row in STEPS if row.kind == "training")


def pipeline_steps(config: "Config") -> list[StepRow]:
    """The steps that the pipeline runs: an optional step only if another step reads it by the configuration."""
    read = {config.predictions.network} | ({"cells", "refined"} if config.seeds.maps == "refined" else set())
    return [row for row in STEPS if row.kind != "metrics" and (not row.is_optional or row.name in read)]
