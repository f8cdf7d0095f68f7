"""Exports labels or maps in other tools' formats, at the size of each image.

  png           palette PNG <id>.png with the data set's own class values, VOC colours, 255 = unknown
  npy           IRN's <id>.npy: keys (0-based source classes), cam (stride 4) and high_res, of the maximum maps
  coco          annotations.json: one annotation per connected component, with box, area and mask; also for FiftyOne
  yolo          labels/<image>.txt: polygons, or boxes; data.yaml with train.txt and val.txt by the run's splits
  cvat          annotations.xml, "CVAT for images 1.1"
  label-studio  tasks.json and label_config.xml
  cityscapes    gtFine/<split>/all/<id>_gtFine_labelIds.png and _color.png
  hugging-face  data/<split>/*.parquet with the pictures and masks, and README.md, for load_dataset of `datasets`

Reads <run>/predictions, <run>/pseudo_labels or <run>/seeds: the first of these that is finished, or the step in
--labels. For npy it reads <run>/maps. An exported image whose mask was corrected and imported (import_masks.py) has the
corrected mask instead. COCO's category ids are the data set's own class values. The file name of a PNG is the image id,
with special characters %-encoded. coco, yolo, cvat, label-studio and hugging-face use the source's image names,
including folders. Where one of these names could mean two images, all names are paths below the folder of all images.
The export prints which folder has the images under the names in its files. Files of png, npy and coco do not say which
images are for validation: to train another network on them, export each split alone. The same command continues an
interrupted export.
"""

import argparse

from jobs.cli.command_line import job_parser, run_main, underscored
from jobs.exports.format_table import FORMATS, SHAPES

LABELS = ("seeds", "pseudo_labels", "predictions")
EXAMPLES = """examples:
  python jobs/export_labels.py --run s3://bucket/voc --format png --out /data/masks
  python jobs/export_labels.py --run s3://bucket/voc --format coco --labels pseudo_labels
  python jobs/export_labels.py --run /data/voc --format cvat --split val --min-object-pixels 100
  python jobs/export_labels.py --run /data/voc --format yolo --shapes boxes --min-object-pixels 100
"""


def main(arguments: list[str]) -> None:
    parser = job_parser("export_labels", f"{__doc__}\n{EXAMPLES}")
    parser.add_argument("--format", choices=tuple(FORMATS), required=True, help="of the files, see above")
    parser.add_argument(
        "--labels", choices=LABELS, type=underscored, default="", help="default: the finest that the run has"
    )
    parser.add_argument(
        "--shapes",
        choices=SHAPES,
        default="",
        help="how objects are written; coco, cvat, label-studio: masks (exact) or polygons; yolo: polygons or boxes; "
        "the first of these is the default",
    )
    parser.add_argument(
        "--min-object-pixels",
        type=_count,
        default=0,
        metavar="N",
        help="leave out objects (connected components of a class) with fewer pixels of the image; 100 is 10 x 10 "
        "pixels; not for npy; default: 0, no object is left out",
    )
    parser.add_argument(
        "--without-corrected",
        action="store_true",
        help="export the run's own labels also for images with a corrected mask; not for npy",
    )
    parser.add_argument(
        "--with-images",
        action="store_true",
        help="also copy the images to images/ in the export, under the names in its files; coco, yolo, cvat and "
        "label-studio",
    )
    parser.add_argument("--split", action="append", default=[], help="only images of this split; may be repeated")
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="local folder or s3:// prefix; default: in <run>/exports, coco-predictions for example",
    )
    parser.add_argument("--restart", choices=["ficklenet_export"], help="export everything again")
    given = parser.parse_args(arguments)
    from jobs.run.directory import open_run  # imports take a second, so --help does without

    run = open_run(given.run, given.config, given.set)
    run.manifest()  # refused before anything slow is imported

    from jobs.cli.launch_log import launch_log
    from jobs.exports.export_job import ExportRequest, export, export_folder
    from jobs.steps.compute import connected
    from jobs.steps.launch import LaunchOptions

    request = ExportRequest(
        given.format,
        given.labels,
        given.shapes,
        tuple(given.split),
        given.min_object_pixels,
        given.without_corrected,
        given.with_images,
    )
    request.check()
    request = request.resolved(run)
    out = export_folder(run, request, given.out)
    options = LaunchOptions(restart=bool(given.restart), dry_run=given.dry_run)
    with launch_log(run, "export_labels", is_dry_run=given.dry_run), connected(run) as connection:
        export(run, connection, request, out, options)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"given '{text}', allowed: a number of pixels from 0, such as 100")
    return int(text)


if __name__ == "__main__":
    run_main(main)
