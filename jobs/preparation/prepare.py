"""Writes a run's manifest, once, and says what is in it."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from itertools import islice

from cluster.words import plural
from jobs.preparation.manifest_summary import describe_manifest
from jobs.run.directory import Run, record_run
from jobs.steps.dry_run import NOTHING
from jobs.steps.progress import Progress, size
from storage.coco import InstanceMask
from storage.errors import BadImage
from storage.images import image_size, read_many
from storage.location import Location
from storage.manifest import Manifest, ManifestRow, write_manifest
from storage.sources import SourceImage, manifest_rows

HEADERS_AT_ONCE = 1024
LATER = ("mask_uri",)  # columns that may still change: a step that learns masks has them in its fingerprint
MASK_WRITERS = 16


def prepare(
    run: Run,
    images: Iterable[SourceImage],
    class_names: tuple[str, ...],
    class_values: tuple[int, ...] | None = None,
    *,
    masks: Sequence[InstanceMask] = (),
    is_found: bool = False,
    dry_run: bool = False,
) -> None:
    """Writes the manifest of a run, once, and says what is in it.

    Args:
        class_values: each class's value in source masks; 1..C where None.
        is_found: the class names are whatever labels occur, so a slip of the pen is one too.
        masks: to be drawn first, those that are not there yet.
        dry_run: say what would be in it.

    Raises:
        ValueError: there are no images or classes, or the run has another manifest already.
    """
    if not class_names:
        raise ValueError("prepare_dataset: no image has a label, so there is no class list. Give --classes.")
    rows = _with_sizes(list(manifest_rows(images, class_names)))
    with tempfile.TemporaryDirectory() as folder:
        draft = Location(f"{folder}/manifest.parquet")
        if write_manifest(draft, rows, class_names, class_values) == 0:
            raise ValueError("prepare_dataset: the source lists no image. Give a split or a table that has some.")
        manifest, place = Manifest.open(draft), run.location / "manifest.parquet"
        _require_an_image(manifest)
        is_other = not place.exists() or _content(run.manifest()) != _content(manifest)
        is_started = any((run.location / step / "step.json").exists() for step in ("classifier", "maps"))
        if is_other and is_started and _content(run.manifest(), but=LATER) != _content(manifest, but=LATER):
            raise ValueError(
                f"{place}: frozen, since steps were started on it, and this one differs in more than its masks. Use "
                "another --run."
            )
        data = draft.read_bytes()
        describe_manifest(manifest, place, run.config, is_found=is_found)
    if dry_run:
        drawn = f" and {plural(len(masks), 'mask')}" if masks else ""
        print(f"  dry run: {size(len(data)) if is_other else 'nothing'}{drawn} to write; {NOTHING}")
        return
    _write_masks(masks)
    if is_other:
        place.write_bytes(data)
        Manifest.forget()
    record_run(run)


def next_step(run: Run) -> str:
    """The command that goes on with a prepared run."""
    wanted = run.config.predicted_splits
    is_predictable = any(
        split in wanted and not problem
        for batch in run.manifest().iter_columns(["split", "problem"])
        for split, problem in zip(*batch.values(), strict=True)
    )
    if is_predictable:
        return f"'python jobs/run_pipeline.py --run {run.uri}', or train_ficklenet.py, its first step"
    return (
        f"'python jobs/train_ficklenet.py --run {run.uri}', then the maps and seeds; run_pipeline.py asks for an image "
        "to predict, so name a split for it: --set predictions.splits=NAME"
    )


def _write_masks(masks: Sequence[InstanceMask]) -> None:
    """Draws the masks that are missing; a folder belongs to one version of the annotations, so one there is right."""
    folders = {mask.place.parent for mask in masks}
    there = {(folder / name).uri for folder in folders for name in folder.list_names()}
    missing = [mask for mask in masks if mask.place.uri not in there]
    progress = Progress("masks", len(missing))
    with ThreadPoolExecutor(MASK_WRITERS) as pool:
        for _ in pool.map(InstanceMask.write, missing):
            progress.advance(1)
    progress.close()


def _with_sizes(rows: list[ManifestRow]) -> Iterator[ManifestRow]:
    """The rows with height and width from the images' headers; None where a header cannot be read."""
    remaining, progress = iter(rows), Progress("prepare", len(rows))
    while batch := list(islice(remaining, HEADERS_AT_ONCE)):
        usable = [row for row in batch if not row.problem and row.height is None]
        sizes = dict(zip((row.image_id for row in usable), read_many([r.uri for r in usable], image_size), strict=True))
        for row in batch:
            size = sizes.get(row.image_id)
            is_known = size is not None and not isinstance(size, BadImage)
            yield replace(row, height=size[0], width=size[1]) if is_known else row  # type: ignore[index]
        progress.advance(len(batch))
    progress.close()


def _require_an_image(manifest: Manifest) -> None:
    """Refuses a list of which not one image opens: a wrong folder, most likely."""
    usable = [row for row in manifest.iter_rows() if not row.problem]
    if usable and all(row.height is None for row in usable):
        raise ValueError(
            f"prepare_dataset: none of the {plural(len(usable), 'image')} can be opened (first: {usable[0].uri}). "
            "Check the folder, for tables and COCO --images."
        )


def _content(manifest: Manifest, but: Sequence[str] = ()) -> str:
    return manifest.column_hash([field.name for field in fields(ManifestRow) if field.name not in but])
