"""Makes pseudo-labels, a label for every pixel: densified seeds at image size, refined by a dense CRF.

Reads <run>/maps, the images and the manifest's saliency maps, writes <run>/pseudo_labels/labels/<id>.png (0
background, class number + 1, in VOC colours). The same command continues an interrupted launch.
"""

from jobs.cli.command_line import run_main
from jobs.cli.step_command import run_step, step_parser

EXAMPLES = """examples:
  python jobs/make_pseudo_labels.py --run s3://bucket/voc
  python jobs/make_pseudo_labels.py --run s3://bucket/voc --set pseudo_labels.refine=false --restart pseudo_labels
"""


def main(arguments: list[str]) -> None:
    run_step("pseudo_labels", step_parser("pseudo_labels", f"{__doc__}\n{EXAMPLES}").parse_args(arguments))


if __name__ == "__main__":
    run_main(main)
