"""Trains a small network to recognise the feature cells of each class, from the maps of many training images.

Reads <run>/classifier and <run>/maps, writes <run>/cells: some cells of each image, and the network that was trained on
them. refine_maps.py needs both. The same command continues an interrupted launch.
"""

from jobs.cli.command_line import run_main
from jobs.cli.step_command import run_step, step_parser

EXAMPLES = """examples:
  python jobs/learn_cells.py --run s3://bucket/voc
  python jobs/learn_cells.py --run s3://bucket/voc --set cells.theta=0.4 --restart cells
"""


def main(arguments: list[str]) -> None:
    run_step("cells", step_parser("cells", f"{__doc__}\n{EXAMPLES}").parse_args(arguments))


if __name__ == "__main__":
    run_main(main)
