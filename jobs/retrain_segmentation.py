"""Trains a second segmentation network on what the first one predicts of the training images (DSRG's retraining).

Reads <run>/segmenter and the images, writes <run>/retrained, with the first training's settings. What is learnt is the
first network's prediction, refined by the CRF at map size, among the image's labels; masks of the strong splits stay
what they are. On small sets this plain cross-entropy wants more epochs than the balanced loss on seeds: give
segmenter.epochs. predict_masks.py uses it where predictions.network=retrained says so. Optional.
"""

from jobs.cli.command_line import run_main
from jobs.cli.step_command import run_step, step_parser

EXAMPLES = """examples:
  python jobs/retrain_segmentation.py --run /data/voc
  python jobs/retrain_segmentation.py --run /data/small --set segmenter.epochs=40
  python jobs/predict_masks.py --run /data/voc --set predictions.network=retrained --restart predictions
"""


def main(arguments: list[str]) -> None:
    run_step("retrained", step_parser("retrained", f"{__doc__}\n{EXAMPLES}").parse_args(arguments))


if __name__ == "__main__":
    run_main(main)
