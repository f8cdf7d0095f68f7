"""Predicts masks with the trained segmentation network: a label for every pixel of the chosen splits or of new images.

Reads the images and <run>/segmenter, or <run>/retrained with predictions.network=retrained. Writes
<run>/predictions/labels/<id>.png (0 background, class number + 1, in VOC colours). If the CRF refines the masks, the
masks before the CRF are in <run>/predictions/unrefined. Reads no mask. The same command continues an interrupted launch
and computes exactly the missing units.

With --images and --out it predicts masks for images that are in no run and need no labels: the files in a folder, in
the column image of a table, or below an s3:// prefix. The output is a run of its own with a copy of the network. Its
origin.json says which network made the masks.
"""

from jobs.cli.command_line import run_main
from jobs.cli.step_command import launch_as_given, run_step, step_parser

EXAMPLES = """examples:
  python jobs/predict_masks.py --run s3://bucket/voc                                    the validation splits
  python jobs/predict_masks.py --run s3://bucket/voc --set predictions.scales=0.75,1,1.25 --set predictions.mirror=true
  python jobs/predict_masks.py --run /data/voc --images /data/october --out /data/october_masks
"""


def main(arguments: list[str]) -> None:
    parser = step_parser("predictions", f"{__doc__}\n{EXAMPLES}")
    parser.add_argument(
        "--images", metavar="PLACE", help="new images: a folder, a table (.csv, .parquet), an s3:// prefix"
    )
    parser.add_argument("--out", metavar="FOLDER", help="where the masks of --images go: a folder or an s3:// prefix")
    given = parser.parse_args(arguments)
    if bool(given.images) != bool(given.out):
        raise ValueError("--images and --out go together: where the new images are, and where their masks go.")
    if not given.images:
        run_step("predictions", given)
        return
    from jobs.run.directory import open_run, parse_output  # imports take a second, so --help does without

    run = open_run(given.run, given.config, given.set)
    run.manifest()  # refused before anything slow is imported

    from jobs.predictions.new_images import output_run
    from storage.location import Location

    images, out, restart = Location.parse(given.images), parse_output(given.out, "--out"), bool(given.restart)
    output = output_run(run, images, out, restart=restart, dry_run=given.dry_run)
    if given.dry_run and not (out / "manifest.parquet").exists():
        print("predict, dry run: nothing was started, nothing was written.")
        return
    launch_as_given(output, "predictions", given)


if __name__ == "__main__":
    run_main(main)
