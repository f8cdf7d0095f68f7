"""Writes a run's manifest once, and prints a summary of it."""

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

from cluster.words import plural
from jobs.preparation.differences import SAME_FLAGS, classes_differ, more_images, rows_differ
from jobs.preparation.label_files import LabelFiles, Meaning, look_at_label_files, write_label_files
from jobs.preparation.manifest_summary import describe_manifest
from jobs.preparation.moving import find_moves, write_moves
from jobs.preparation.pictures import Pictures, look_at_pictures, lost_classes, require_a_picture, require_usable
from jobs.preparation.same_pictures import same_pictures
from jobs.preparation.split_roles import ROLE_KEYS, with_roles
from jobs.run.config_keys import Config
from jobs.run.directory import Run, preparations, record_run, require_settings_of_started_steps, setting_notes
from jobs.run.selection import measurable_splits
from jobs.run.steps import TRAINING_COLUMNS
from jobs.steps.dry_run import NOTHING
from jobs.steps.evaluation_state import evaluate_commands
from jobs.steps.progress import size
from storage.drawings import Drawing
from storage.location import Location
from storage.manifest import Manifest, ManifestRow, write_manifest
from storage.masks import parse_mask_values
from storage.sources import SourceImage, manifest_rows

# Columns that may still change: steps that are trained on masks have them in their fingerprints; only exports use
# numbers
LATER = ("mask_uri", "source_number")


@dataclass(frozen=True)
class Options:
    """How a manifest is made.

    Attributes:
        is_found: the class names are all labels that occur, so a typing error becomes a class too.
        mask_values: the meaning of the values in mask files, in the format of `parse_mask_values`; None: the class
            values.
        notes: sentences to print about how the source was read.
        root: the folder of files with addresses relative to the run; None: the run.
        dry_run: print what would be in the manifest.
        command: the command of this preparation, which the run keeps.
    """

    is_found: bool = False
    mask_values: str | None = None
    notes: tuple[str, ...] = ()
    root: Location | None = None
    dry_run: bool = False
    command: str = ""


def prepare(
    run: Run,
    images: Sequence[SourceImage],
    class_names: Sequence[str],
    class_values: Sequence[int] | None = None,
    *,
    drawings: dict[str, Drawing] | None = None,
    options: Options = Options(),
) -> Run:
    """Writes the manifest of a run once, and prints a summary of it.

    Args:
        class_values: the value of each class in masks; None: 1..C.
        drawings: masks to draw from outlines, by the path in the run that images have as their mask.

    Returns:
        The run; its configuration has the keys that depend on the splits.

    Raises:
        ValueError: there are no images or classes, none can be used, or steps were started on another manifest, or
            the --config has other settings than steps were started with, or a key names a split that no image has.
    """
    class_names, images = tuple(class_names), list(images)
    class_values = tuple(class_values or range(1, len(class_names) + 1))
    if not images:
        raise ValueError("prepare_dataset: the source has no image. Give a split or a table that has some.")
    require_usable([(image.image_id, image.problem) for image in images])
    if not class_names:
        raise ValueError("prepare_dataset: no image has a label, so there is no class list. Give --classes.")

    # 1. Make the rows, with facts from the pictures' headers and the masks
    pictures, files = look_at_images(run, images, class_names, class_values, drawings or {}, options)

    # 2. Write the manifest, unless steps were started with another one
    with tempfile.TemporaryDirectory() as folder:
        draft = Location(f"{folder}/manifest.parquet")
        write_manifest(draft, files.rows, class_names, class_values, home=run.location)
        manifest, place = Manifest.open(draft), run.location / "manifest.parquet"
        existing = run.manifest() if place.exists() else None
        is_other = existing is None or bool(existing.moves) or _content(existing) != _content(manifest)
        moves = _moves_of_started(run, existing, files, manifest, options) if existing and is_other else {}
        if existing is None:
            _require_manifest_of_steps(run, manifest)
        data = draft.read_bytes()
        run = _with_roles(run, manifest, existing)
        require_settings_of_started_steps(run)
        describe_manifest(manifest, run.uri, run.config, pictures.unreadable, is_found=options.is_found)
    for note in (*options.notes, *pictures.notes, *lost_classes(pictures, images, class_names), *files.notes):
        print(f"  note:    {note}")
    if sentence := _settings_of_the_paper(run):
        print(f"  settings: {sentence}")
    if options.dry_run:
        describe_writing(files, size(len(data)) if is_other else "nothing")
        return run
    if existing and moves:
        write_moves(existing, run, {**existing.moves, **moves}, files.rows)
        moved = ", ".join(f"{new} instead of {old}" for old, new in moves.items())
        print(f"  moved:   images are read in {moved}; all results remain valid.")
    elif is_other:
        place.write_bytes(data)
        Manifest.forget()
    for note in setting_notes(run):
        print(note)
    record_run(run, prepared=options.command)
    return run


def look_at_images(
    run: Run,
    images: Sequence[SourceImage],
    class_names: Sequence[str],
    class_values: Sequence[int],
    drawings: dict[str, Drawing],
    options: Options,
    earlier: Iterable[ManifestRow] = (),
) -> tuple[Pictures, LabelFiles]:
    """The images' rows, with what their headers and masks say; writes the run's own label files, but in a dry run.

    Args:
        drawings: as `prepare` takes them.
        earlier: the rows of the run that these images are added to.

    Raises:
        ValueError: none of the images can be used.
    """
    root = options.root or run.location
    pictures = look_at_pictures(list(manifest_rows(images, class_names)), images, root)
    require_usable([(row.image_id, row.problem) for row in pictures.rows])
    require_a_picture(pictures)
    pictures.notes += same_pictures(pictures, root, earlier)
    values = parse_mask_values(options.mask_values, class_names) if options.mask_values else None
    meaning = Meaning(tuple(class_names), tuple(class_values), values)
    files = look_at_label_files(pictures.rows, pictures.headers, drawings, meaning, root)
    if not options.dry_run:
        write_label_files(files, run.location)
    return pictures, files


def next_step(run: Run) -> str:
    """The next command for a prepared run."""
    measured = measurable_splits(run.manifest(), run.config)
    if measured and run.step("predictions").fingerprint():
        return f"'{evaluate_commands(run, measured)}' measures the finished steps with the masks"
    return f"'python jobs/run_pipeline.py --run {run.uri}', or train_ficklenet.py, its first step"


def _settings_of_the_paper(run: Run) -> str:
    """A sentence if the run has the paper's network because no --config was given, which is slow on a CPU; else ""."""
    default = Config().classifier.backbone
    if "--config" in run.settings or run.config.classifier.backbone != default:
        return ""
    return (
        f"those of the paper ({default}, for a GPU). On a machine without a GPU, give --config "
        "docs/examples/own_data.toml."
    )


def _moves_of_started(
    run: Run, existing: Manifest, files: LabelFiles, manifest: Manifest, options: Options
) -> dict[str, str]:
    """The moved folders, if steps were started with the existing manifest and the new one has the same images.

    Raises:
        ValueError: steps were started, and the new manifest differs in more than masks and the images' places.
    """
    is_started = any((run.location / step / "step.json").exists() for step in ("classifier", "maps"))
    if not is_started or _content(existing, but=LATER) == _content(manifest, but=LATER):
        return {}
    classes = existing.class_names, existing.class_values
    is_same = classes == (manifest.class_names, manifest.class_values)
    earlier = list(existing.iter_written_rows())
    moves = find_moves(earlier, files.rows) if is_same else None
    if not moves:
        difference = classes_differ(existing.class_names, manifest.class_names) or rows_differ(
            earlier, list(manifest.iter_written_rows()), manifest.class_names, LATER
        )
        if sentence := more_images(existing, manifest, options.command):
            raise ValueError(f"{existing.location}: {sentence}")
        raise ValueError(
            f"{existing.location}: cannot change any more, because steps were started with it, and the new list "
            f"differs in more than the masks and the images' folder: {difference}. {SAME_FLAGS}, or use another --run. "
            "To add images, give --add."
        )
    return moves


def _require_manifest_of_steps(run: Run, manifest: Manifest) -> None:
    """Refuses to make a lost manifest again with other images, labels or splits than steps were started with.

    Raises:
        ValueError: it has others.
    """
    recorded = (run.step("classifier").fingerprint() or {}).get("manifest")
    if recorded and recorded != manifest.column_hash(TRAINING_COLUMNS):
        first = "".join(f" The first was: '{command}'." for command in preparations(run)[:1])
        raise ValueError(
            f"{run.location / 'manifest.parquet'}: the classifier was started with other images, labels or splits. "
            f"{SAME_FLAGS}, or put the manifest back from a copy.{first}"
        )


def _with_roles(run: Run, manifest: Manifest, existing: Manifest | None) -> Run:
    earlier = _splits(existing) if existing else []
    usable, every = _splits(manifest), manifest.splits()
    unusable = [split for split in every if split not in usable]
    kept = tuple(text for text in run.kept if not text.startswith(ROLE_KEYS))  # they follow from the splits
    return replace(run, config=with_roles(run.config, usable, earlier, unusable), kept=kept)


def _splits(manifest: Manifest) -> list[str]:
    """The splits of the usable images, in their order."""
    found = dict[str, None]()
    for batch in manifest.iter_columns(["split", "problem"]):
        found.update(
            (split, None) for split, problem in zip(batch["split"], batch["problem"], strict=True) if not problem
        )
    return list(found)


def describe_writing(files: LabelFiles, what: str) -> None:
    number = len(files.drawings) + len(files.copies)
    drawn = f" and {plural(number, 'mask')}" if number else ""
    print(f"  dry run: {what}{drawn} to write; {NOTHING}")


def _content(manifest: Manifest, but: Sequence[str] = ()) -> str:
    return manifest.column_hash([field.name for field in fields(ManifestRow) if field.name not in but])
