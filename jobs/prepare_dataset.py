"""Makes a run's manifest: the frozen list of its images, labels and class names.

Reads a VOC devkit folder, or a CSV table beside a folder of images; of the images only their headers.
"""

import argparse
import difflib
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from itertools import islice

from jobs.command_line import job_parser, run_main
from jobs.dry_run import NOTHING, size
from jobs.progress import Progress
from jobs.run import Run, open_run, record_run
from storage.errors import BadImage
from storage.image_table import read_image_table
from storage.images import image_size, read_many
from storage.location import Location
from storage.manifest import Manifest, ManifestRow, write_manifest
from storage.sources import SourceImage, label_names, manifest_rows
from storage.voc import VOC_CLASSES, read_voc, voc_class_values

HEADERS_AT_ONCE = 1024
UNREADABLE_SHOWN = 3

EXAMPLES = """examples:
  python jobs/prepare_dataset.py --run /data/run1 --voc /data/VOC2012 --split train_aug --split val \\
      --classes cat,cow,dog --masks SegmentationClassAug --saliency Saliency
  python jobs/prepare_dataset.py --run s3://bucket/run2 --csv labels.csv --images s3://bucket/photos

The CSV table has the columns image and labels, and if you like id, split, mask and saliency; several labels are
separated by ';'. Folders given by a relative path lie in the devkit.
"""


def main(arguments: list[str]) -> None:
    parser = job_parser("prepare_dataset", f"{__doc__}\n{EXAMPLES}")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--voc", metavar="FOLDER", help="VOC devkit folder, the one with JPEGImages")
    source.add_argument("--csv", metavar="FILE", help="table of images and labels")
    parser.add_argument("--classes", metavar="A,B,...", help="class list; default: VOC's 20, or all in the table")
    parser.add_argument("--split", action="append", metavar="NAME", help="list in ImageSets; may be repeated")
    parser.add_argument("--labels", metavar="FILE", help="cls_labels.npy; default: the devkit's, else Annotations")
    parser.add_argument("--masks", metavar="FOLDER", help="masks <id>.png, for evaluation and strong supervision")
    parser.add_argument("--saliency", metavar="FOLDER", help="saliency maps <id>.png, for the background cue")
    parser.add_argument(
        "--images", metavar="FOLDER", help="what the table's paths are relative to; default: its folder"
    )
    given = parser.parse_args(arguments)
    _refuse_misplaced(given)

    run = open_run(given.run, given.config, given.set)
    class_names = _class_names(given.classes) if given.classes else None
    if given.voc:
        devkit = Location.parse(given.voc)
        folders = {name: _folder(devkit, getattr(given, name)) for name in ("labels", "masks", "saliency")}
        class_names = class_names or VOC_CLASSES
        voc = read_voc(devkit, given.split or ["train_aug"], class_names, **folders)
        if voc.num_left_out:
            print(f"prepare: {voc.num_left_out:,} images have none of the chosen classes and are left out.")
        prepare(run, voc.images, class_names, tuple(voc_class_values(class_names)), dry_run=given.dry_run)
    else:
        table = Location.parse(given.csv)
        folder = Location.parse(given.images) if given.images else Location(table.uri.rsplit("/", 1)[0])
        images = list(read_image_table(table, folder))
        if class_names:
            _require_labels(class_names, label_names(images))
        prepare(run, images, class_names or tuple(label_names(images)), dry_run=given.dry_run)


def prepare(
    run: Run,
    images: Iterable[SourceImage],
    class_names: tuple[str, ...],
    class_values: tuple[int, ...] | None = None,
    *,
    dry_run: bool = False,
) -> None:
    """Writes the manifest of a run, once, and says what is in it.

    Args:
        class_values: each class's value in source masks; 1..C where None.
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
        if is_other and any((run.location / step / "step.json").exists() for step in ("classifier", "maps")):
            raise ValueError(
                f"{place}: frozen, since steps were started on it, and this one differs. Use another --run."
            )
        data = draft.read_bytes()
        _describe(manifest, place)
    if dry_run:
        print(f"  dry run: {size(len(data)) if is_other else 'nothing'} to write; {NOTHING}")
        return
    if is_other:
        place.write_bytes(data)
        Manifest.forget()
    record_run(run)


def _class_names(given: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in given.split(","))
    for number, name in enumerate(names):
        if not name or name in names[:number]:
            fault = f"{name!r} is named twice" if name else "a name is empty"
            raise ValueError(f"--classes {given}: {fault}. Give each class once: --classes cat,cow,dog.")
    return names


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
            f"prepare_dataset: none of the {len(usable):,} images can be opened (first: {usable[0].uri}). "
            "Check the folder, for a table --images."
        )


def _require_labels(class_names: tuple[str, ...], found: Sequence[str]) -> None:
    """Refuses a class that no image of a table has: misspelt, most likely."""
    for name in class_names:
        if name not in found:
            near = difflib.get_close_matches(name, found, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"The table has {', '.join(found)}."
            raise ValueError(f"--classes: no image has the label {name!r}. {hint}")


def _content(manifest: Manifest) -> str:
    return manifest.column_hash([field.name for field in fields(ManifestRow)])


def _describe(manifest: Manifest, place: Location) -> None:
    splits: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    problems: Counter[str] = Counter()
    unreadable: list[str] = []
    for batch in manifest.iter_columns(["uri", "split", "labels", "problem", "height"]):
        splits.update(batch["split"])
        labels.update(manifest.class_names[label] for found in batch["labels"] for label in found)
        problems.update(problem for problem in batch["problem"] if problem)
        columns = (batch[name] for name in ("uri", "height", "problem"))
        unreadable += [uri for uri, height, problem in zip(*columns, strict=True) if height is None and not problem]
    print(f"prepare: {manifest.num_images:,} images in {place}")
    print("  splits:  " + ", ".join(f"{name or 'unnamed'} {count:,}" for name, count in splits.items()))
    print("  classes: " + ", ".join(f"{name} {labels[name]:,}" for name in manifest.class_names))
    for problem, count in problems.most_common():
        print(f"  skipped by every step: {count:,} because {problem}")
    if unreadable:
        print(
            f"  cannot be opened now: {len(unreadable):,} images (first: {', '.join(unreadable[:UNREADABLE_SHOWN])}); "
            "steps will skip those that still cannot, with the reason."
        )


def _folder(devkit: Location, given: str | None) -> Location | None:
    if given is None:
        return None
    return Location.parse(given) if given.startswith("/") or "://" in given else devkit / given.rstrip("/")


def _refuse_misplaced(given: argparse.Namespace) -> None:
    only_voc, only_csv = ("split", "labels", "masks", "saliency"), ("images",)
    source, misplaced = ("--csv", only_voc) if given.csv else ("--voc", only_csv)
    for name in misplaced:
        if getattr(given, name) is not None:
            raise ValueError(f"--{name} does not go with {source}; the table's columns say it, see --help.")


if __name__ == "__main__":
    run_main(main)
