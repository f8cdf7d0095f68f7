"""Adds images to a prepared run: their rows come behind the others, so all results stay where they are.

Every step computes the units that are new or have grown. Trained networks stay; see `jobs.steps.added_images`.
"""

import tempfile
from collections import Counter
from collections.abc import Sequence

from cluster.words import plural
from jobs.preparation.manifest_summary import describe_manifest
from jobs.preparation.prepare import Options, describe_writing, look_at_images
from jobs.run.directory import Run, record_run
from jobs.run.split_names import TEST, VALIDATION
from jobs.run.steps import STEPS
from jobs.steps.progress import size
from storage.drawings import Drawing
from storage.location import Location
from storage.manifest import Manifest, ManifestRow, resolve_address, write_manifest
from storage.sources import Source, SourceImage, with_ids


def add_images(run: Run, source: Source, options: Options) -> None:
    """Adds the images of a source that the run does not have yet, and says what follows.

    Args:
        source: with class names of the run alone, as `read_listing` gives it.

    Raises:
        ValueError: a launch is at work, an image cannot be added, or the maps have no room for its labels.
    """
    manifest = run.manifest()
    for row in STEPS:
        run.step(row.name).require_idle()
    _require_same_values(manifest, source)
    images, renamed = new_images(manifest, source.images)
    if not images:
        others = "images of the source with a class of the run" if options.notes else "images of the source"
        if source.images:
            print(f"prepare: nothing to add: all {others} are in {run.uri} already ({len(source.images):,}).")
        else:
            print("prepare: nothing to add: no image of the source has a class of the run.")
        _print_notes(options.notes)
        return
    _require_no_new_test_split(run, manifest, images)
    _require_predicted_split(run, manifest, images)
    classes = manifest.class_names, manifest.class_values
    drawings: dict[str, Drawing] = source.drawings
    pictures, files = look_at_images(run, images, *classes, drawings, options, manifest.iter_rows())
    _require_room(run, files.rows)
    _require_unmoved(manifest, run, files.rows)

    rows = [*manifest.iter_written_rows(), *files.rows]
    additions = (*manifest.additions, manifest.num_images)
    with tempfile.TemporaryDirectory() as folder:
        draft = Location(f"{folder}/manifest.parquet")
        write_manifest(draft, rows, *classes, moves=manifest.moves, home=run.location, additions=additions)
        data = draft.read_bytes()
        describe_manifest(Manifest.open(draft), run.uri, run.config, pictures.unreadable, is_found=False)
    _describe(run, manifest, images)
    _print_notes([*options.notes, *renamed, *pictures.notes, *files.notes])
    if options.dry_run:
        describe_writing(files, size(len(data)))
        return
    manifest.location.write_bytes(data)
    Manifest.forget()
    record_run(run, prepared=options.command)
    print(f"  next:    '{run.command('run_pipeline')}'")


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"  note:    {note}")


def new_images(manifest: Manifest, images: Sequence[SourceImage]) -> tuple[list[SourceImage], list[str]]:
    """The images whose address no row of the manifest has, with ids that no row has, and a sentence about changed ids.

    Raises:
        ValueError: an image has an id of its own that belongs to another one.
    """
    there = [SourceImage(row.image_id, row.uri, problem=row.problem, has_own_id=True) for row in manifest.iter_rows()]
    known = {image.uri for image in there if image.uri}
    new = [image for image in images if image.uri not in known]
    every, notes = with_ids([*there, *new])
    return every[len(there) :], notes


def _require_same_values(manifest: Manifest, source: Source) -> None:
    """Refuses masks in which a class has another value than in the run's."""
    is_other = source.class_values is not None and tuple(source.class_values) != manifest.class_values
    if is_other and any(image.mask_uri for image in source.images):
        raise ValueError(
            f"--add: in the source's masks the classes have the values {list(source.class_values or ())}, in those of "
            f"the run {list(manifest.class_values)}. Add the images without their masks, or prepare another run of all."
        )


def _require_room(run: Run, rows: Sequence[ManifestRow]) -> None:
    """Refuses an image with more labels than the maps have room for: their arrays grow by images only."""
    try:
        room = run.maps().num_slots
    except FileNotFoundError:
        return
    most = max(rows, key=lambda row: len(row.labels))
    if len(most.labels) > room:
        raise ValueError(
            f"--add: {most.image_id!r} has {len(most.labels)} labels, and the run's maps have room for {room} in an "
            "image. Leave such images out, or prepare another run of all images."
        )


def _require_unmoved(manifest: Manifest, run: Run, rows: Sequence[ManifestRow]) -> None:
    """Refuses an image in a folder that the run reads at another place now: it would be looked for there."""
    for row in rows:
        for address in (row.uri, row.mask_uri, row.saliency_uri):
            if address and resolve_address(address, run.location, manifest.moves) != resolve_address(
                address, run.location, {}
            ):
                raise ValueError(
                    f"--add: {address} lies in a folder of which the run was told that it moved to another place. "
                    "Give the added images another folder."
                )


def _require_predicted_split(run: Run, manifest: Manifest, images: Sequence[SourceImage]) -> None:
    """Refuses images without a split if those of the run have one: they would get no prediction, and stay so."""
    if any(image.split for image in images) or not all(row.split for row in manifest.iter_rows()):
        return
    predicted = ", ".join(sorted(run.config.predicted_splits))
    raise ValueError(
        f"--add: no added image has a split, and masks are predicted for the splits {predicted} of the run. Give the "
        "--val-fraction of the preparation, or a table with a column 'split'."
    )


def _require_no_new_test_split(run: Run, manifest: Manifest, images: Sequence[SourceImage]) -> None:
    """Refuses images of a split for tests or validation that the run would train on."""
    known = {split for batch in manifest.iter_columns(["split"]) for split in batch["split"]}
    for split in dict.fromkeys(image.split for image in images):
        is_held_out = TEST.fullmatch(split) or VALIDATION.fullmatch(split)
        if is_held_out and split not in known and run.config.data.role_of(split) == "train":
            validation = ", ".join(run.config.data.val_splits) or "none"
            raise ValueError(
                f"--add: the run would train on the split {split!r}: its validation split is {validation}, and all "
                "others are trained on. Add the images with another split, or without those of this one (--split). "
                "To predict masks for them: predict_masks.py --images."
            )


def _describe(run: Run, manifest: Manifest, images: Sequence[SourceImage]) -> None:
    """Says how many images come behind which, and what their splits are for."""
    splits = Counter(image.split for image in images)
    named = ", ".join(f"{split or 'no split'} {count:,}" for split, count in splits.items())
    print(f"  added:   {plural(len(images), 'image')} behind the {manifest.num_images:,} of the run ({named})")
    predicted = set(run.config.predicted_splits)
    if not predicted & splits.keys():
        print(
            f"  note:    masks are predicted for the splits {', '.join(sorted(predicted)) or 'none'} alone, to which "
            "no added image belongs."
        )
