"""Time of the CRF at image size, with all labels and with those that are likely somewhere in the image.

    OMP_NUM_THREADS=1 python tests/benchmarks/crf_labels.py docs/examples/photographs/cat.jpg

Four labels are likely; all others have a probability of about 0.001 at every pixel, as a trained network gives them.
The last column is the share of pixels that get another label.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project need not be installed

import numpy as np
from machine import describe
from PIL import Image

from ficklenet.crf import refine
from ficklenet.label_image import label_image

NUM_LIKELY, WIDTH, HEIGHT = 4, 500, 375


def probabilities(num_labels: int) -> np.ndarray:
    """Smooth random fields of the likely labels, float32 (labels, HEIGHT, WIDTH); they sum to 1."""
    fields = np.random.default_rng(0).random((NUM_LIKELY, 12, 16)).astype(np.float32) ** 4
    smooth = [Image.fromarray(field).resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR) for field in fields]
    found = np.full((num_labels, HEIGHT, WIDTH), 1e-3, np.float32)
    found[:NUM_LIKELY] = np.stack([np.asarray(field) for field in smooth])
    found[:NUM_LIKELY] /= found[:NUM_LIKELY].sum(0)
    return found / found.sum(0)


def least_seconds(work: Callable[[], np.ndarray], repeats: int) -> tuple[float, np.ndarray]:
    """The least processor time of several calls, and the result of the last one."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        result = work()
        seconds.append(time.process_time() - start)
    return min(seconds), result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path, help="a photograph")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(describe("pydensecrf2", "numpy"))
    image = np.asarray(Image.open(options.image).convert("RGB").resize((WIDTH, HEIGHT)))
    print("labels | all of them, s | the likely ones, s | other labels\n---|---|---|---")
    for num_labels in (2, 7, 21, 81):
        found = probabilities(max(num_labels, NUM_LIKELY))[:num_labels]
        found = found / found.sum(0)
        whole, expected = least_seconds(lambda found=found: refine(found, image).argmax(0), options.repeats)
        part, labels = least_seconds(
            lambda found=found: label_image(lambda size: found, image, use_crf=True), options.repeats
        )
        print(f"{num_labels} | {whole:.2f} | {part:.2f} | {(labels != expected).mean():.4%}", flush=True)


if __name__ == "__main__":
    main()
