"""An export as a unit step: like every step, it resumes, and it refuses to read unfinished steps."""

from dataclasses import dataclass
from functools import partial

from cluster.connect import Connection
from cluster.fanout import Stages
from jobs.exports.exporter import LABELS, Exporter, ExportStages, finish_export
from jobs.exports.format_table import FORMATS
from jobs.exports.image_names import ImageNames
from jobs.run.directory import Run, parse_output
from jobs.run.fingerprints import UPSTREAM, step_id
from jobs.run.selection import units_of_step
from jobs.run.steps import BY_NAME
from jobs.steps.finished import require_finished
from jobs.steps.launch import LaunchOptions, UnitPlan
from jobs.steps.unit_driver import UnitStepJob, run_unit_step
from jobs.steps.unit_dry_run import CostEstimate
from storage.location import Location

ALGORITHM_VERSION = 2


@dataclass(frozen=True)
class ExportRequest:
    """What to export, and how.

    Attributes:
        format: a name of `FORMATS`.
        labels: the step with the labels; "" for the finest labels of the run. npy has maps, so it does not use it.
        shapes: how objects are written; "" for the format's default.
        splits: the splits to export; empty for all.
    """

    format: str
    labels: str = ""
    shapes: str = ""
    splits: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuses flags that the format does not allow.

        Raises:
            ValueError: a flag is not allowed; the message says what is.
        """
        row = FORMATS[self.format]
        if self.shapes and self.shapes not in row.shapes:
            allowed = " or ".join(row.shapes)
            hint = f"allowed: {allowed}." if allowed else "this format has no choice of shapes. Leave it out."
            raise ValueError(f"--shapes {self.shapes} does not go with --format {self.format}; {hint}")

    def resolved(self, run: Run) -> "ExportRequest":
        """The request with its defaults filled in; call `check` first.

        Labels for a format of maps are not used, and the user reads that.
        """
        row = FORMATS[self.format]
        if self.labels and not row.has_labels:
            print(f"export: --format {self.format} exports the maps, so --labels {self.labels} is not used")
        labels = (self.labels or finest_labels(run)) if row.has_labels else "maps"
        return ExportRequest(self.format, labels, self.shapes or (row.shapes[0] if row.shapes else ""), self.splits)

    @property
    def folder_name(self) -> str:
        """The name of the default folder, such as 'coco-predictions', with other options of the request."""
        is_default = self.shapes in ("", *FORMATS[self.format].shapes[:1])
        return "-".join([self.format, self.labels, *([] if is_default else [self.shapes]), *self.splits])


def finest_labels(run: Run) -> str:
    """The finished step with the finest labels; "seeds" if there is none."""
    manifest = run.manifest()
    for name in reversed(LABELS):
        fingerprint = run.step(name).fingerprint()
        if fingerprint and not run.step(name).missing_units(
            units_of_step(BY_NAME[name], manifest, run.config, fingerprint)
        ):
            return name
    return "seeds"


def export(run: Run, connection: Connection, request: ExportRequest, out: Location, options: LaunchOptions) -> None:
    """Writes the missing files of an export.

    Args:
        request: the resolved request.
        out: the folder for the files; its subfolder `PROGRESS` has the export's own records.

    Raises:
        NotYet: the step to export is not finished.
        ValueError: it was made with other settings, or the format cannot store it.
    """
    manifest, format, labels = run.manifest(), request.format, request.labels
    run = run.reading(labels)  # from here on, all reads are of this start
    source = require_finished(run, labels, "export_labels")
    largest = FORMATS[format].largest_value
    if largest and max(manifest.class_values) > largest:
        raise ValueError(
            f"--format {format}: class values go up to {max(manifest.class_values)}, but a palette has only 256 "
            "values, and 255 means ignore. Export as coco."
        )
    known = manifest.splits()
    if wrong := [split for split in request.splits if split not in known]:
        raise ValueError(f"--split {wrong[0]}: no such split; the manifest has {', '.join(sorted(known)) or 'none'}.")
    names = ImageNames.of(manifest)
    stages = ExportStages(run, format, labels, out, request.shapes, request.splits, names)

    def finish(plan: UnitPlan) -> None:
        finish_export(stages, manifest, source.units, plan.start_id)
        print(f"export: {format} files of the {labels} are in {out}")

    flags = ["--format", format, *(["--labels", labels] if FORMATS[format].has_labels else [])]
    flags += ["--shapes", request.shapes] if request.shapes else []
    job = UnitStepJob(
        title="export",
        step=stages.step,
        fingerprint={
            "algorithm_version": ALGORITHM_VERSION,
            "run": run.uri,
            "format": format,
            "labels": labels,
            "shapes": request.shapes,
            "splits": list(request.splits),
            "names": names.fingerprint(manifest),
            **({"keys": "source classes"} if format == "npy" else {}),
            UPSTREAM: {labels: step_id(run, labels)},
        },
        units=source.units,
        stages=Stages(partial(Exporter, stages)),
        command=run.command(
            "export_labels", *flags, *(f"--split={split}" for split in request.splits), "--out", out.uri
        ),
        skipped=source.skipped,
        finish=finish,
        cost=CostEstimate(seconds=0.02),
    )
    run_unit_step(run, connection, job, options)


def export_folder(run: Run, request: ExportRequest, out: str | None) -> Location:
    """The folder of an export: the given one, else a folder in the run for each resolved request."""
    if out is None:
        return run.location / "exports" / request.folder_name
    return parse_output(out, "--out")
