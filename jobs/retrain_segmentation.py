"""Trains a second segmentation network on the predictions of the first for the training images (DSRG's retraining).

Optional. Reads <run>/segmenter and the images, writes <run>/retrained, with the settings of the first training. The new
network learns the predictions of the first network, limited to the labels of each image and refined by the CRF at map
size. Images of the strong splits are still learnt from their masks. On small data sets this plain cross-entropy needs
more epochs than the balanced loss on seeds: give segmenter.epochs. predict_masks.py uses the new network with
predictions.network=retrained.
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
