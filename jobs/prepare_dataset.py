"""Makes a run's manifest: the frozen list of its images, labels and class names.

Reads a folder per class, a table (CSV, Parquet), VOC's and COCO's layouts (also as other tools write them), labelme's
files or Hugging Face's data sets. Of the images it reads only the headers: an image that is damaged behind its header
is counted here. The steps that read it whole skip it, with the reason. If masks are given as outlines, they are drawn
into <run>/masks, for the evaluation. docs/data.md shows a small example of each source and the messages for usual
mistakes.
"""

import argparse
import gc
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jobs.cli.command_line import job_parser, run_main

if TYPE_CHECKING:
    from jobs.run.directory import Run
    from storage.location import Location

EXAMPLES = """examples:
  python jobs/prepare_dataset.py --run /data/run1 --folders /data/photos
  python jobs/prepare_dataset.py --run s3://bucket/run2 --csv labels.csv --images s3://bucket/photos
  python jobs/prepare_dataset.py --run /data/run3 --voc /data/VOC2012 --split train_aug --split val \\
      --classes cat,cow,dog --masks SegmentationClassAug --saliency Saliency
  python jobs/prepare_dataset.py --run /data/run4 --coco /data/coco --split train2017 --split val2017
  python jobs/prepare_dataset.py --run /data/run5 --coco instances.json --images /data/photos
  python jobs/prepare_dataset.py --run /data/run6 --hugging-face /data/beans
  python jobs/prepare_dataset.py --run /data/run1 --images /mnt/photos              the run's images were moved there
  python jobs/prepare_dataset.py --run /data/run1 --csv october.csv --add           add images to the run

A table has the columns image and labels, and optionally id, split, mask and saliency:

    image,labels,split,mask,saliency
    0001.jpg,cat;dog,train,masks/0001.png,
    0002.jpg,dog,val,,
    more/0003.jpg,,train,,

Several labels are separated by ';' or '|', or written as a list, or each class has a column with 0 and 1. An image
without any label is unlabelled. Several rows may name the same image. The splits val, valid and validation are used for
validation, and masks are predicted for them. The split test is not used for training, unless it is the only one.
Classes are numbered from 1 in the order of --classes, else in alphabetical order: here cat is 1 and dog is 2. Masks are
palette or grey PNGs of these numbers; 0 is background, and every other value, such as 255, is ignored.

A relative path in --masks or --saliency is relative to the source's folder.
"""

OBJECTS_PER_COLLECTION = 100_000  # new objects; Python's default is 700


def main(arguments: list[str]) -> None:
    given = make_parser().parse_args(arguments)

    from jobs.preparation.adding import add_images  # imports take a second, so --help does without
    from jobs.preparation.prepare import Options, next_step, prepare
    from jobs.preparation.read_source import read_listing, source_name
    from jobs.preparation.run_place import require_no_image_in_steps, require_outside
    from jobs.run.directory import open_run, parse_output
    from jobs.run.origin import only_masks
    from storage.location import Location

    run = open_run(given.run, given.config, given.set)
    if not (run.location / "manifest.parquet").exists():
        parse_output(given.run, "--run")
    elif given.add and (sentence := only_masks(run)):
        raise ValueError(f"--add: {sentence} For more new images, give predict_masks.py another --out.")
    if not source_name(given):
        _move(run, given)
        return
    require_outside(run.location, source_name(given), Location.parse(getattr(given, source_name(given))))
    command = shlex.join(["python", "jobs/prepare_dataset.py", *arguments])
    with _root(run, given.dry_run) as root, _rare_collections():
        listing = read_listing(given, root, run.manifest() if given.add else None)
        require_no_image_in_steps(run.location, listing.source.images)
        options = Options(listing.is_found, given.mask_values, listing.source.notes, root, given.dry_run, command)
        if given.add:
            add_images(run, listing.source, options)
            return
        images, drawings = listing.source.images, listing.source.drawings
        run = prepare(run, images, listing.class_names, listing.class_values, drawings=drawings, options=options)
    if not given.dry_run:
        print(f"  next:    {next_step(run)}")


def make_parser() -> argparse.ArgumentParser:
    """The command line: one source, and how to read it."""
    parser = job_parser("prepare_dataset", f"{__doc__}\n{EXAMPLES}")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--folders", metavar="FOLDER", help="a folder per class, also below train/, val/ and test/")
    source.add_argument("--csv", metavar="FILE", help="table of images and labels, as text or as Excel's .xlsx")
    source.add_argument("--parquet", metavar="FILE", help="the same table as Parquet; its labels may be lists")
    source.add_argument(
        "--voc", metavar="FOLDER", help="VOC's layout: the folder with JPEGImages, or one with images and XML files"
    )
    source.add_argument(
        "--coco",
        metavar="PATH",
        help="COCO's layout: annotations/instances_<split>.json and images in <split>/; Roboflow's: "
        "<split>/_annotations.coco.json; or one .json file",
    )
    source.add_argument("--labelme", metavar="FOLDER", help="labelme's JSON files beside the images")
    source.add_argument(
        "--hugging-face", metavar="PATH", help="a data set of Hugging Face: Parquet files or a folder of save_to_disk"
    )
    parser.add_argument(
        "--images",
        metavar="FOLDER",
        help="COCO, tables: the folder that paths are relative to; default: the folder of the table, the split or the "
        "file. Without a source: the new folder of a prepared run's images",
    )
    parser.add_argument(
        "--add",
        action="store_true",
        help="add the source's images to a prepared run, behind its own; finished units and trained networks stay",
    )
    parser.add_argument(
        "--classes",
        metavar="A,B,...",
        help="classes, or a .txt file with a name in each line; default: VOC's 20, COCO's categories, or all labels",
    )
    parser.add_argument(
        "--split",
        action="append",
        metavar="NAME",
        help="read only this split: a list of VOC (train_aug), the NAME in COCO's instances_<NAME>.json, a value in a "
        "table, or a folder; may be repeated",
    )
    parser.add_argument(
        "--val-fraction", type=_fraction, metavar="F", help="use this share of the images as the split val: 0.2"
    )
    parser.add_argument("--negative-label", metavar="NAME", help="a label for images that show none of the classes")
    parser.add_argument(
        "--unlabelled-are-negative",
        action="store_true",
        help="images without a label show none of the classes; default: their labels are not known",
    )
    _add_label_flags(parser)
    _add_mask_flags(parser)
    return parser


def _add_label_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image-column", metavar="NAME", help="tables: the column that names the images")
    parser.add_argument("--label-column", metavar="NAME", help="tables: the column of the labels")
    parser.add_argument("--label-separator", metavar="SIGNS", help="tables: what separates labels; default: ';|'")
    parser.add_argument("--encoding", metavar="NAME", help="CSV: cp1252 for example; default: UTF-8 or UTF-16")
    parser.add_argument(
        "--minus-one",
        choices=("absent", "present", "skip"),
        help="tables with a column per class and the values 0, 1 and -1: what -1 means; skip leaves such images out",
    )
    parser.add_argument(
        "--first-class",
        type=int,
        choices=(0, 1),
        metavar="0|1",
        help="tables with numbers as labels: the number of the first class",
    )
    parser.add_argument("--labels", metavar="FILE", help="VOC: cls_labels.npy; default: the devkit's, else Annotations")


def _add_mask_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--masks", metavar="FOLDER", help="VOC, folders: masks <id>.png, for evaluation and strong supervision"
    )
    parser.add_argument(
        "--saliency", metavar="FOLDER", help="not for tables: saliency maps <id>.png, for the background cue"
    )
    parser.add_argument(
        "--mask-values",
        metavar="VALUE=CLASS,...",
        help="which class each value or colour of other kinds of masks means: 255=cat, '#800000=cat,#008000=dog', "
        "0=cat,1=dog,255=background, or 255=label for the image's only label; also for JPEGs",
    )
    parser.add_argument(
        "--crowds-are-objects", action="store_true", help="COCO: read crowd regions (iscrowd 1) as objects"
    )


def _move(run: "Run", given: argparse.Namespace) -> None:
    """Records the new folder of a prepared run's images, if no source is given."""
    from jobs.preparation.moving import move_run_images
    from jobs.preparation.read_source import FLAGS_OF_SOURCES
    from storage.location import Location

    if not given.images or given.add:
        raise ValueError(
            "no source of labels. Give one of --folders, --csv, --parquet, --voc, --coco, --labelme and --hugging-face."
        )
    if others := [flag for flag in FLAGS_OF_SOURCES if getattr(given, flag) not in (None, False)]:
        name = others[0].replace("_", "-")
        raise ValueError(f"--{name}: says how a source is read, and --images alone moves a run's images. Leave it out.")
    if not (run.location / "manifest.parquet").exists():
        raise ValueError(
            f"--images {given.images}: without a source, this flag gives the new folder of a prepared run's images, "
            f"but {run.uri} is not prepared. Give a source too: --csv labels.csv, or for a folder per class --folders "
            f"{given.images}."
        )
    move_run_images(run, Location.parse(given.images), dry_run=given.dry_run)


@contextmanager
def _root(run: "Run", dry_run: bool) -> Iterator["Location"]:
    """Where images that are inside a source's files are written: the run, or a temporary folder in a dry run."""
    from storage.location import Location

    if not dry_run:
        yield run.location
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Location(folder)


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Python looks for garbage less often, because the rows of many images are none: this saves a tenth of the time."""
    usual = gc.get_threshold()
    gc.set_threshold(OBJECTS_PER_COLLECTION, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"given '{text}', allowed: a number between 0 and 1, such as 0.2")
    return value


if __name__ == "__main__":
    run_main(main)
