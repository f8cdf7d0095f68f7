"""An export as a unit step: like every step, it resumes, and it refuses to read unfinished steps."""

import json
from dataclasses import dataclass, replace
from functools import partial

from cluster.connect import Connection
from cluster.fanout import Payload, Stages
from cluster.words import plural
from jobs.exports.corrected import corrected_masks, in_words
from jobs.exports.earlier_files import earlier_files_kept
from jobs.exports.exported_images import copy_images, where_images_are
from jobs.exports.exporter import LABELS, Exporter, ExportStages, finish_export
from jobs.exports.format_table import FORMATS
from jobs.exports.image_names import ImageNames
from jobs.run.directory import Run, parse_output
from jobs.run.fingerprints import UPSTREAM, step_id
from jobs.run.origin import origin_of
from jobs.run.selection import units_of_step
from jobs.run.split_names import nearest
from jobs.run.steps import BY_NAME
from jobs.run.trial import is_trial
from jobs.steps.finished import require_finished
from jobs.steps.launch import LaunchOptions, UnitPlan
from jobs.steps.unit_driver import UnitStepJob, run_unit_step
from jobs.steps.unit_dry_run import CostEstimate
from storage.errors import NotYet
from storage.location import Location
from storage.manifest import Manifest
from storage.masks import SPECK_PIXELS

ALGORITHM_VERSION = 3

_CORRECTED = "corrected_masks"  # key of the fingerprint


@dataclass(frozen=True)
class ExportRequest:
    """What to export, and how.

    Attributes:
        format: a name of `FORMATS`.
        labels: the step with the labels; "" for the finest labels of the run. npy has maps, so it does not use it.
        shapes: how objects are written; "" for the format's default.
        splits: the splits to export; empty for all.
        min_object_pixels: components of a class with fewer pixels are left out; 0 for none.
        without_corrected: export the labels of the step also for images with a corrected mask.
        with_images: also copy the images into the export, for formats whose files name them.
    """

    format: str
    labels: str = ""
    shapes: str = ""
    splits: tuple[str, ...] = ()
    min_object_pixels: int = 0
    without_corrected: bool = False
    with_images: bool = False

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
        if self.min_object_pixels and not row.has_labels:
            raise ValueError(
                f"--min-object-pixels {self.min_object_pixels} does not go with --format {self.format}, which has maps "
                "and no objects. Leave it out."
            )
        if self.without_corrected and not row.has_labels:
            raise ValueError(
                f"--without-corrected does not go with --format {self.format}, which has maps and no masks. Leave it "
                "out."
            )
        if self.with_images and not row.images:
            allowed = ", ".join(name for name, each in FORMATS.items() if each.images)
            raise ValueError(
                f"--with-images does not go with --format {self.format}, whose files name no image files. It goes with "
                f"{allowed}. Leave it out."
            )

    def resolved(self, run: Run) -> "ExportRequest":
        """The request with its defaults filled in; call `check` first.

        Labels for a format of maps are not used, and the user reads that.
        """
        row = FORMATS[self.format]
        if self.labels and not row.has_labels:
            print(f"export: --format {self.format} exports the maps, so --labels {self.labels} is not used")
        labels = (self.labels or finest_labels(run)) if row.has_labels else "maps"
        return replace(self, labels=labels, shapes=self.shapes or (row.shapes[0] if row.shapes else ""))

    @property
    def folder_name(self) -> str:
        """The name of the default folder, such as 'coco-predictions', with other options of the request."""
        is_default = self.shapes in ("", *FORMATS[self.format].shapes[:1])
        smallest = [f"min{self.min_object_pixels}"] if self.min_object_pixels else []
        shapes = [] if is_default else [self.shapes]
        without = ["without", "corrected"] if self.without_corrected else []
        return "-".join([self.format, self.labels, *shapes, *self.splits, *smallest, *without])


def finest_labels(run: Run) -> str:
    """The finished step with the finest labels.

    Raises:
        NotYet: none is finished.
    """
    manifest = run.manifest()
    for name in reversed(LABELS):
        fingerprint = run.step(name).fingerprint()
        if fingerprint and not run.step(name).missing_units(
            units_of_step(BY_NAME[name], manifest, run.config, fingerprint)
        ):
            return name
    if origin_of(run):
        raise NotYet(f"export: the masks of {run.uri} are not finished. Run '{run.step_command('predictions')}' first.")
    raise NotYet(
        f"export: {run.uri} has no finished masks yet, neither predictions nor pseudo-labels nor seeds. Run "
        f"'{run.command('run_pipeline')}' first, which makes all of them."
    )


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
        there = ", ".join(sorted(known)) or "none"
        raise ValueError(f"--split {wrong[0]}: no such split; the manifest has {there}.{nearest(wrong[0], known)}")
    names = ImageNames.of(manifest)
    stages = ExportStages(run, format, labels, out, request.shapes, request.splits, names, request.min_object_pixels)
    left_out, mixed = _left_out(stages, manifest), _mixed_splits(stages, manifest)
    skipped = {skip.image_id for skips in source.skipped.values() for skip in skips}
    if FORMATS[format].has_labels and not request.without_corrected:
        masks = corrected_masks(run, stages.includes)
        stages = replace(stages, corrected={name: masks[name] for name in masks.keys() - skipped})
    seen = SeenImages(labels, request.min_object_pixels, is_trial(run.config))

    def finish(plan: UnitPlan) -> None:
        with earlier_files_kept(out):
            about = finish_export(stages, manifest, source.units, plan.start_id)
        others = "; --labels chooses others" if FORMATS[format].has_labels else ""
        print(f"export: {format} files of the {labels} are in {out}{others}")
        if stages.corrected:
            print(
                f"export: {plural(len(stages.corrected), 'image')} with corrected masks, which are exported instead of "
                f"the {labels}; --without-corrected exports the {labels}"
            )
        seen.describe()
        images = ""
        if request.with_images:
            images = copy_images(stages, skipped)
        elif FORMATS[format].images:
            images = where_images_are(stages, f"{command} --with-images")
        for note in filter(None, (about, images, mixed)):
            print(f"export: {note}")
        if is_trial(run.config):
            print(
                "export: do not use these masks: this run is a trial. For real masks, prepare another run with "
                "docs/examples/own_data.toml."
            )
        if left_out:
            print(f"export: {left_out}")

    flags = ["--format", format, *(["--labels", labels] if FORMATS[format].has_labels else [])]
    flags += ["--shapes", request.shapes] if request.shapes else []
    min_pixels = request.min_object_pixels
    flags += ["--min-object-pixels", str(min_pixels)] if min_pixels else []
    flags += ["--without-corrected"] if request.without_corrected else []
    flags += [f"--split={split}" for split in request.splits]
    command = run.command("export_labels", *flags, "--out", out.uri)
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
            **({"roles": {split: run.config.data.role_of(split) for split in known}} if format == "yolo" else {}),
            **({"min_object_pixels": min_pixels} if min_pixels else {}),
            **({_CORRECTED: in_words(run, stages.corrected)} if stages.corrected else {}),
            UPSTREAM: {labels: step_id(run, labels)},
        },
        units=source.units,
        stages=Stages(partial(Exporter, stages)),
        command=f"{command} --with-images" if request.with_images else command,
        skipped=source.skipped,
        observe=seen.add,
        finish=finish,
        cost=CostEstimate(seconds=0.02),
    )
    is_default = out.is_local and out == export_folder(run, request, None)
    changed = set() if options.restart else _changed(job)
    if changed and changed <= {_CORRECTED, UPSTREAM} and is_default and FORMATS[format].one_file:  # which is kept
        print("export: the masks of the run have changed since this export was made, so it is written again")
        options = replace(options, restart=True)
    elif changed == {_CORRECTED}:  # the driver names all other differences
        raise ValueError(
            f"{job.step.location.parent}: this export was made before masks were imported that the run has now. "
            f"'{job.command} --restart {job.step.location.name}' writes the files again with these masks. To keep the "
            "files as they are, give another --out."
        )
    run_unit_step(run, connection, job, options)


def _changed(job: UnitStepJob) -> set[str]:
    """The keys of an export's fingerprint that have changed since it was started; none if it was not."""
    recorded, wanted = job.step.fingerprint(), json.loads(json.dumps(job.fingerprint))
    if recorded is None:
        return set()
    return {key for key in {*wanted, _CORRECTED} if recorded.get(key) != wanted.get(key)}


@dataclass
class SeenImages:
    """The images that a launch exports, to count what is left out and to warn if they have no objects."""

    labels: str
    min_object_pixels: int = 0
    is_trial: bool = False
    num_exported: int = 0
    num_empty: int = 0
    num_dropped: int = 0
    num_objects: int = 0
    num_specks: int = 0

    def add(self, result: Payload) -> None:
        self.num_exported += result["num_exported"]
        self.num_empty += result["num_empty"]
        self.num_dropped += result["num_dropped"]
        self.num_objects += result["num_objects"]
        self.num_specks += result["num_specks"]

    def describe(self) -> None:
        """Prints how many images and objects this launch exported, how many are specks or are left out, and warns."""
        if not self.num_exported:
            return
        if self.num_exported and self.num_objects:
            print(
                f"export: {plural(self.num_exported, 'image')} with {plural(self.num_objects, 'object')}"
                f"{self._specks()}"
            )
        if self.min_object_pixels:
            few = f"of fewer than {plural(self.min_object_pixels, 'pixel')}"
            print(f"export: {plural(self.num_dropped, 'object')} {few} left out; they count as background")
        if not self.num_empty:
            return
        if self.num_empty < self.num_exported:
            print(f"export: {self.num_empty:,} of {plural(self.num_exported, 'image')} have no object")
            return
        others = " or ".join(name for name in LABELS if name != self.labels)
        print(
            f"export: WARNING: no object in any of the {plural(self.num_exported, 'image')}: every pixel is background "
            "or unknown. Look at the report."
            + ("" if self.is_trial else f" Other labels may be better: --labels {others}.")
        )

    def _specks(self) -> str:
        if 2 * self.num_specks < self.num_objects:
            return ""
        return (
            f"; {self.num_specks:,} of them have fewer than {SPECK_PIXELS} pixels, and --min-object-pixels "
            f"{SPECK_PIXELS} leaves these out"
        )


def _left_out(stages: ExportStages, manifest: Manifest) -> str:
    """Which images of the splits asked for are not exported, and why; "" if all are.

    Raises:
        ValueError: none is exported.
    """
    asked = {name: count for name, count in manifest.split_counts().items() if name in (stages.splits or [name])}
    missing = sum(count for split, count in asked.items() if not stages.includes(split))
    if not missing:
        return ""
    predicted = ", ".join(stages.run.config.predicted_splits)
    reason = (
        f"{missing:,} of {plural(sum(asked.values()), 'image')} are not exported, because masks are predicted for the "
        f"split {predicted} only. '--labels pseudo_labels' exports all images that have labels. To predict more: "
        f"'{stages.run.step_command('predictions')} --set predictions.splits={','.join(manifest.splits())} --restart "
        "predictions'."
    )
    if missing == sum(asked.values()):
        raise ValueError(f"export_labels: {reason}")
    return reason


def _mixed_splits(stages: ExportStages, manifest: Manifest) -> str:
    """A note if the files do not tell training and validation images apart; else ""."""
    exported = [split for split in manifest.splits() if split and stages.includes(split)]
    if not FORMATS[stages.format].mixes_splits or {"train", "val"} - set(map(stages.run.config.data.role_of, exported)):
        return ""
    return (
        f"the files do not say which images are of {' and which of '.join(sorted(exported))}. To train another network "
        f"on them, export each split alone, such as --split {sorted(exported)[0]}."
    )


def export_folder(run: Run, request: ExportRequest, out: str | None) -> Location:
    """The folder of an export: the given one, else a folder in the run for each resolved request."""
    if out is None:
        return run.location / "exports" / request.folder_name
    return parse_output(out, "--out")
