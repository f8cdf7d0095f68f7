"""An export as a unit step: it resumes, and refuses what is not finished, as every step does."""

from functools import partial

from cluster.connect import Connection
from cluster.fanout import Stages
from jobs.exports.exporter import IGNORED_IN_PNG, Exporter, ExportStages, Format, Labels, merge_coco
from jobs.run.directory import Run, parse_output
from jobs.run.fingerprints import UPSTREAM, step_id
from jobs.steps.finished import require_finished
from jobs.steps.launch import LaunchOptions, UnitPlan
from jobs.steps.unit_driver import UnitStepJob, run_unit_step
from storage.location import Location

ALGORITHM_VERSION = 1


def export(
    run: Run, connection: Connection, format: Format, labels: Labels, out: Location, options: LaunchOptions
) -> None:
    """Writes the missing files of an export.

    Args:
        labels: of no meaning to npy, which holds maps.
        out: the folder for the files; `PROGRESS` in it holds the export's own records.

    Raises:
        NotYet: what is exported is not finished.
        ValueError: it was made with other settings, or the format cannot hold it.
    """
    manifest = run.manifest()
    source_name = "maps" if format == "npy" else labels
    run = run.reading(source_name)  # before it is looked at: what follows is of this start
    source = require_finished(run, source_name, "export_labels")
    if format == "png" and max(manifest.class_values) >= IGNORED_IN_PNG:
        raise ValueError(
            f"--format png: class values go up to {max(manifest.class_values)}, but 255 means ignore and a palette "
            "ends there. Export as coco."
        )
    stages = ExportStages(run, format, labels, out)

    def finish(plan: UnitPlan) -> None:
        if format == "coco":
            merge_coco(stages, manifest, source.units, plan.start_id)  # one file, put together of the units' parts
        print(f"export: {format} files are in {out}")

    job = UnitStepJob(
        title="export",
        step=stages.step,
        fingerprint={
            "algorithm_version": ALGORITHM_VERSION,
            "run": run.uri,
            "format": format,
            "labels": source_name,
            UPSTREAM: {source_name: step_id(run, source_name)},
        },
        units=source.units,
        stages=Stages(partial(Exporter, stages)),
        command=run.command("export_labels", "--format", format, "--labels", labels, "--out", out.uri),
        skipped=source.skipped,
        finish=finish,
    )
    run_unit_step(run, connection, job, options)


def export_folder(run: Run, format: str, labels: str, out: str | None) -> Location:
    """Where an export goes: what was asked for, else a folder of its own for each format and source."""
    if out is None:
        return run.location / "exports" / f"{format}-{'maps' if format == 'npy' else labels}"
    return parse_output(out, "--out")
