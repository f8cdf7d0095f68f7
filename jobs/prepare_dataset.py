"""Makes a run's manifest: the frozen list of its images, labels and class names.

Reads a VOC devkit folder, COCO's instances, or a table (CSV, Parquet) beside a folder of images; of the images only
their headers. Masks that COCO has as outlines are drawn into <run>/masks, for evaluation.
"""

import argparse
import difflib
from collections.abc import Sequence

from cluster.words import plural
from jobs.cli.command_line import job_parser, run_main
from jobs.preparation.prepare import next_step, prepare
from jobs.run.directory import Run, open_run
from storage.coco import coco_splits, read_coco
from storage.image_table import read_image_table, read_parquet_table
from storage.location import Location
from storage.sources import label_names
from storage.voc import VOC_CLASSES, read_voc, voc_class_values

# Which flags go with which source
SOURCE_FLAGS = {
    "voc": ("split", "labels", "masks", "saliency"),
    "coco": ("split", "saliency", "images"),
    "csv": ("images",),
    "parquet": ("images",),
}
EXAMPLES = """examples:
  python jobs/prepare_dataset.py --run /data/run1 --voc /data/VOC2012 --split train_aug --split val \\
      --classes cat,cow,dog --masks SegmentationClassAug --saliency Saliency
  python jobs/prepare_dataset.py --run /data/run2 --coco /data/coco --split train2017 --split val2017
  python jobs/prepare_dataset.py --run /data/run3 --coco instances.json --images /data/photos
  python jobs/prepare_dataset.py --run s3://bucket/run4 --csv labels.csv --images s3://bucket/photos

A table has the columns image and labels, and if you like id, split, mask and saliency:

    image,labels,split,mask
    0001.jpg,cat;dog,train,masks/0001.png
    0002.jpg,dog,val,
    more/0003.jpg,,train,

Several labels are separated by ';' or '|' (in Parquet they may be a list); an image without any is unlabelled. The
split val is for validation and gets the predicted masks. Classes are numbered from 1 in the order of --classes, else of
their sorted names: here cat is 1, dog 2. Masks are palette or grey PNGs of these numbers; 0 is background, every other
value, such as 255, is ignored.

Folders given by a relative path lie in the devkit, or in COCO's folder.
"""


def main(arguments: list[str]) -> None:
    parser = job_parser("prepare_dataset", f"{__doc__}\n{EXAMPLES}")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--voc", metavar="FOLDER", help="VOC devkit folder, the one with JPEGImages")
    source.add_argument(
        "--coco",
        metavar="PATH",
        help="COCO folder, with annotations/instances_<split>.json and images in <split>/; or one instances .json",
    )
    source.add_argument("--csv", metavar="FILE", help="table of images and labels, as text")
    source.add_argument("--parquet", metavar="FILE", help="the same table as Parquet; its labels may be lists")
    parser.add_argument(
        "--classes", metavar="A,B,...", help="class list; default: VOC's 20, COCO's categories, or all in the table"
    )
    parser.add_argument(
        "--split",
        action="append",
        metavar="NAME",
        help="VOC: list in ImageSets (train_aug); COCO: NAME of instances_<NAME>.json (train2017), or for the images "
        "of one file; may be repeated",
    )
    parser.add_argument("--labels", metavar="FILE", help="VOC: cls_labels.npy; default: the devkit's, else Annotations")
    parser.add_argument("--masks", metavar="FOLDER", help="VOC: masks <id>.png, for evaluation and strong supervision")
    parser.add_argument(
        "--saliency", metavar="FOLDER", help="VOC, COCO: saliency maps <id>.png, for the background cue"
    )
    parser.add_argument(
        "--images",
        metavar="FOLDER",
        help="COCO, tables: what paths are relative to; default: the table's folder, the split's or that of the file",
    )
    given = parser.parse_args(arguments)
    _refuse_misplaced(given)

    run = open_run(given.run, given.config, given.set)
    class_names = _class_names(given.classes) if given.classes else None
    if given.voc:
        _prepare_voc(run, given, class_names)
    elif given.coco:
        _prepare_coco(run, given, class_names)
    else:
        _prepare_table(run, given, class_names)
    if not given.dry_run:
        print(f"  next:    {next_step(run)}")


def _prepare_voc(run: Run, given: argparse.Namespace, class_names: tuple[str, ...] | None) -> None:
    devkit, class_names = Location.parse(given.voc), class_names or VOC_CLASSES
    folders = {name: _folder(devkit, getattr(given, name)) for name in ("labels", "masks", "saliency")}
    voc = read_voc(devkit, given.split or ["train_aug"], class_names, **folders)
    _say_left_out(voc.num_left_out)
    prepare(run, voc.images, class_names, tuple(voc_class_values(class_names)), dry_run=given.dry_run)


def _prepare_coco(run: Run, given: argparse.Namespace, class_names: tuple[str, ...] | None) -> None:
    place = Location.parse(given.coco)
    is_file = given.coco.endswith(".json")
    folder = place.parent if is_file else place
    splits = given.split or ([""] if is_file else ["train2017"])
    if is_file and len(splits) > 1:
        raise ValueError(f"--coco {given.coco}: one file is one split; for several give the folder of COCO's layout.")
    unknown = [] if is_file else [split for split in splits if split not in coco_splits(folder)]
    if unknown:
        known = ", ".join(coco_splits(folder))
        hint = f"there are splits {known}" if known else "give the folder that holds annotations/"
        raise ValueError(f"{folder}: no annotations/instances_{unknown[0]}.json; {hint}.")
    images = _folder(folder, given.images)
    parts = [
        read_coco(
            place if is_file else folder / "annotations" / f"instances_{split}.json",
            images or (folder if is_file else folder / split),
            split,
            run.location / "masks",
            class_names,
            _folder(folder, given.saliency),
        )
        for split in splits
    ]
    if len({(part.class_names, part.class_values) for part in parts}) > 1:
        raise ValueError(f"{folder}: the categories of {', '.join(splits)} differ; give one of these splits.")
    _say_left_out(sum(part.num_left_out for part in parts))
    if num_without := sum(part.num_without_outline for part in parts):
        print(
            f"prepare: {plural(num_without, 'image')} without a mask, as not all of their annotations have an outline."
        )
    prepare(
        run,
        [image for part in parts for image in part.images],
        parts[0].class_names,
        parts[0].class_values,
        masks=[mask for part in parts for mask in part.masks],
        dry_run=given.dry_run,
    )


def _prepare_table(run: Run, given: argparse.Namespace, class_names: tuple[str, ...] | None) -> None:
    table, read = Location.parse(given.csv or given.parquet), read_image_table if given.csv else read_parquet_table
    folder = Location.parse(given.images) if given.images else table.parent
    images = list(read(table, folder))
    if images and all(image.problem for image in images):
        raise ValueError(
            f"{table}: none of its {plural(len(images), 'row')} can be used (first: {images[0].image_id!r}, because "
            f"{images[0].problem}). Paths are below --images, absolute, or s3://."
        )
    if class_names:
        _require_labels(class_names, label_names(images))
    prepare(run, images, class_names or tuple(label_names(images)), is_found=not class_names, dry_run=given.dry_run)


def _class_names(given: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in given.split(","))
    for number, name in enumerate(names):
        if not name or name in names[:number]:
            fault = f"{name!r} is named twice" if name else "a name is empty"
            raise ValueError(f"--classes {given}: {fault}. Give each class once: --classes cat,cow,dog.")
    return names


def _require_labels(class_names: tuple[str, ...], found: Sequence[str]) -> None:
    """Refuses a class that no image of a table has: misspelt, most likely."""
    for name in class_names:
        if name not in found:
            near = difflib.get_close_matches(name, found, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"The table has {', '.join(found)}."
            raise ValueError(f"--classes: no image has the label {name!r}. {hint}")


def _folder(devkit: Location, given: str | None) -> Location | None:
    if given is None:
        return None
    return Location.parse(given) if given.startswith("/") or "://" in given else devkit / given.rstrip("/")


def _refuse_misplaced(given: argparse.Namespace) -> None:
    source = next(name for name in SOURCE_FLAGS if getattr(given, name))
    for name in sorted({flag for flags in SOURCE_FLAGS.values() for flag in flags} - set(SOURCE_FLAGS[source])):
        if getattr(given, name) is not None:
            allowed = ", ".join(f"--{flag}" for flag in SOURCE_FLAGS[source])
            raise ValueError(f"--{name} does not go with --{source}; with it go {allowed}.")


def _say_left_out(num_left_out: int) -> None:
    if num_left_out:
        print(f"prepare: {plural(num_left_out, 'image')} left out, with none of the chosen classes.")


if __name__ == "__main__":
    run_main(main)
