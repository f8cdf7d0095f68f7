"""Trains the FickleNet classifier on image-level labels, with one or more workers.

Reads <run>/manifest.parquet, writes <run>/classifier. Reads no mask. The same command continues an interrupted
training from its last checkpoint. A finished training is not repeated;
the command prints its metrics.
"""

from jobs.cli.command_line import run_main
from jobs.cli.step_command import run_step, step_parser

EXAMPLES = """examples:
  python jobs/train_ficklenet.py --run /data/voc --set classifier.weights=/data/vgg16.pt
  python jobs/train_ficklenet.py --run s3://bucket/voc --set cluster.training_workers=4
"""


def main(arguments: list[str]) -> None:
    run_step("classifier", step_parser("classifier", f"{__doc__}\n{EXAMPLES}").parse_args(arguments))


if __name__ == "__main__":
    run_main(main)
