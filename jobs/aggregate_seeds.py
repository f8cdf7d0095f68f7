"""Makes seeds from finished maps: a label map per image at map resolution, with background and unknown cells.

Reads <run>/maps and the manifest's saliency maps, writes <run>/seeds. The same command continues an interrupted
run. To use another threshold you need no new maps: give --restart seeds --set seeds.theta=0.5.
"""

from jobs.cli.command_line import run_main
from jobs.cli.step_command import run_step, step_parser

EXAMPLES = """examples:
  python jobs/aggregate_seeds.py --run s3://bucket/voc
  python jobs/aggregate_seeds.py --run s3://bucket/voc --set seeds.theta=0.5 --restart seeds
"""


def main(arguments: list[str]) -> None:
    run_step("seeds", step_parser("seeds", f"{__doc__}\n{EXAMPLES}").parse_args(arguments))


if __name__ == "__main__":
    run_main(main)
