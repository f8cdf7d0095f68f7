"""Measures seeds, pseudo-labels and predictions against masks: IoU per class, mIoU, precision, recall and coverage.

Reads the masks and what the run has of <run>/maps, <run>/seeds, <run>/pseudo_labels and <run>/predictions. Prints the
figures and writes them to <run>/evaluation/metrics.json. The densified seeds, which label every pixel, are measured
too. --deterministic adds the seeds of the deterministic maps; for them every image runs through the backbone again.

At map resolution the seeds are compared with baselines. Two need no classifier: all ones and a centred Gaussian. With
--deterministic there are two more: the deterministic maps, blurred or dilated. Each baseline has the parameters that
are best on the tune part of the training images. If seeds are not better than the baselines, their figures show
coverage, not localisation. "of several" is the mIoU of the images whose mask has several classes.

Masks that the network was trained on (segmenter.strong_splits, segmenter.supervision=masks) do not measure it. So the
default is images whose masks it has not seen: other training splits, or else the validation splits. If images of its
training are measured with --split, the network's figures have the mark "trained on these masks", and the report does
not judge by them.

At map resolution the true label of a cell is the mask's value at the position of the cell. At image resolution seeds
are enlarged by nearest neighbour, and densified seeds are made from enlarged maps. Pixels with the true label 255 are
ignored. A pixel without a label counts as a miss. So all pixels of an image that an earlier step skipped are misses,
and the output says so.
"""

from typing import Literal

from jobs.cli.command_line import job_parser, run_main

EXAMPLES = """examples:
  python jobs/evaluate.py --run s3://bucket/voc                             training images, report part
  python jobs/evaluate.py --run s3://bucket/voc --split val                 densified seeds beside the network's masks
  python jobs/evaluate.py --run s3://bucket/voc --deterministic --resolution map
  python jobs/evaluate.py --run s3://bucket/voc --sweep seeds.theta=0.2,0.35,0.5
"""


def main(arguments: list[str]) -> None:
    parser = job_parser("evaluate", f"{__doc__}\n{EXAMPLES}")
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="NAME",
        help="default: the training splits, or others if the network was trained on their masks",
    )
    parser.add_argument(
        "--part",
        choices=("tune", "report", "all"),
        help="of training splits: a quarter of the ids to tune thresholds on, the rest to report, or all (default: "
        "report, or all if only images of the tune part have masks)",
    )
    parser.add_argument("--resolution", choices=["map", "image", "both"], help="where labels meet truth; default: both")
    parser.add_argument("--deterministic", action="store_true", help="beside them, labels of the deterministic maps")
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=V1,V2,...",
        help="try values of a seeds.* or pseudo_labels.* key, at map resolution; reads masks, of the tune part only",
    )
    given = parser.parse_args(arguments)
    if given.sweep and given.resolution not in (None, "map"):
        raise ValueError(f"--resolution {given.resolution}: --sweep measures at map resolution alone. Leave it out.")

    from jobs.cli.launch_log import launch_log  # imports take seconds, so --help does without
    from jobs.evaluation.measuring import evaluate_labels, sweep
    from jobs.run.directory import open_run
    from jobs.steps.compute import connected

    run = open_run(given.run, given.config, given.set)
    run.manifest()  # refused before a Ray is started
    options = {"deterministic": given.deterministic, "dry_run": given.dry_run}
    resolutions: dict[str, tuple[Literal["map", "image"], ...]] = {
        "map": ("map",),
        "image": ("image",),
        "both": ("map", "image"),
    }
    with launch_log(run, "evaluate", is_dry_run=given.dry_run), connected(run) as connection:
        if given.sweep:
            sweep(run, connection, given.sweep, given.split, given.part, **options)
        else:
            chosen = resolutions[given.resolution or "both"]
            evaluate_labels(run, connection, given.split, given.part, chosen, **options)


if __name__ == "__main__":
    run_main(main)
