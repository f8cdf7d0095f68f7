"""Makes refined maps: the probabilities that the network of cells gives each cell, spread to cells that look alike.

Reads <run>/classifier, <run>/maps and <run>/cells, writes <run>/refined. With --set seeds.maps=refined, seeds and
pseudo-labels are made from the refined maps. The same command continues an interrupted launch.
"""

from jobs.cli.command_line import run_main
from jobs.cli.step_command import run_step, step_parser

EXAMPLES = """examples:
  python jobs/refine_maps.py --run s3://bucket/voc
  python jobs/refine_maps.py --run s3://bucket/voc --set refined.walk_steps=32 --restart refined
"""


def main(arguments: list[str]) -> None:
    run_step("refined", step_parser("refined", f"{__doc__}\n{EXAMPLES}").parse_args(arguments))


if __name__ == "__main__":
    run_main(main)
