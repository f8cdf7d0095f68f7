"""Trains the segmentation network on seeds, with one or more workers.

Reads <run>/manifest.parquet and <run>/seeds, writes <run>/segmenter. Of the masks it reads only those of the strong
splits (semi-supervised). With segmenter.supervision=masks it reads all masks and no seeds (the upper bound). The same
command continues an interrupted training from its last checkpoint. A finished training is not repeated;
the command prints its metrics.
"""

from jobs.cli.command_line import run_main
from jobs.cli.step_command import run_step, step_parser

EXAMPLES = """examples:
  python jobs/train_segmentation.py --run /data/voc --set segmenter.weights=/data/vgg16.pt
  python jobs/train_segmentation.py --run /data/voc --strong-split train           semi-supervised
  python jobs/train_segmentation.py --run s3://bucket/voc --set segmenter.dilations=6,12,18,24
  python jobs/train_segmentation.py --run /data/voc --set segmenter.head=deeplabv3plus
"""


def main(arguments: list[str]) -> None:
    parser = step_parser("segmenter", f"{__doc__}\n{EXAMPLES}")
    parser.add_argument(
        "--strong-split",
        action="append",
        default=[],
        metavar="NAME",
        help="a split that is also trained on its masks; may be repeated; the same as segmenter.strong_splits=NAME,...",
    )
    given = parser.parse_args(arguments)
    strong = [f"segmenter.strong_splits={','.join(given.strong_split)}"] if given.strong_split else []
    run_step("segmenter", given, strong)


if __name__ == "__main__":
    run_main(main)
