"""Predicts masks with the trained segmentation network: a label for every pixel of some splits' images.

Reads the images and <run>/segmenter, or <run>/retrained where predictions.network says so. Writes
<run>/predictions/labels/<id>.png (0 background, class number + 1, in VOC colours) and, where the CRF refines them, what
they were before in <run>/predictions/unrefined. Reads no mask. The same command continues an interrupted run and
computes exactly the missing units.
"""

from jobs.cli.command_line import run_main
from jobs.cli.step_command import run_step, step_parser

EXAMPLES = """examples:
  python jobs/predict_masks.py --run s3://bucket/voc                                    the validation splits
  python jobs/predict_masks.py --run s3://bucket/voc --set predictions.scales=0.75,1,1.25 --set predictions.mirror=true
"""


def main(arguments: list[str]) -> None:
    run_step("predictions", step_parser("predictions", f"{__doc__}\n{EXAMPLES}").parse_args(arguments))


if __name__ == "__main__":
    run_main(main)
