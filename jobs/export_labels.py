"""Exports labels or maps in the field's formats, at the size of each image.

  png    palette PNG <id>.png with the data set's own class values, VOC colours, 255 = ignore
  npy    IRN's <id>.npy: a dictionary of keys (0-based source classes), cam (stride 4) and high_res, of the maximum maps
  coco   one annotations.json with run-length masks; category ids are the data set's own class values

Reads <run>/seeds or, with --labels, <run>/pseudo_labels or <run>/predictions; for npy <run>/maps. File names are image
ids with special characters %-encoded. The same command continues an interrupted export.
"""

from jobs.cli.command_line import job_parser, run_main, underscored

FORMATS = ("png", "npy", "coco")
LABELS = ("seeds", "pseudo_labels", "predictions")
EXAMPLES = """examples:
  python jobs/export_labels.py --run s3://bucket/voc --format png --out /data/seeds
  python jobs/export_labels.py --run s3://bucket/voc --format coco --labels pseudo_labels
  python jobs/export_labels.py --run s3://bucket/voc --format png --labels predictions
"""


def main(arguments: list[str]) -> None:
    parser = job_parser("export_labels", f"{__doc__}\n{EXAMPLES}")
    parser.add_argument("--format", choices=FORMATS, required=True, help="of the files, see above")
    parser.add_argument("--labels", choices=LABELS, type=underscored, default="seeds", help="default: seeds")
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="local folder or s3:// prefix; default: in <run>/exports, png-seeds for example",
    )
    parser.add_argument("--restart", choices=["ficklenet_export"], help="export everything again")
    given = parser.parse_args(arguments)
    from jobs.run.directory import open_run  # imports take a second, so --help does without

    run = open_run(given.run, given.config, given.set)
    run.manifest()  # refused before anything slow is imported

    from jobs.exports.export_job import export, export_folder
    from jobs.steps.compute import connected
    from jobs.steps.launch import LaunchOptions

    out = export_folder(run, given.format, given.labels, given.out)
    options = LaunchOptions(restart=bool(given.restart), dry_run=given.dry_run)
    with connected(run.config.cluster) as connection:
        export(run, connection, given.format, given.labels, out, options)


if __name__ == "__main__":
    run_main(main)
