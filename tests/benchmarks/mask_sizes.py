"""Processor time of a core for one photograph of several sizes: read for the maps, its pseudo-label, its prediction.

    OMP_NUM_THREADS=1 python tests/benchmarks/mask_sizes.py

The photographs are those of docs/examples, enlarged and with grain, as JPEGs; four of seven labels are likely. The
network's pass is not included, because it does not depend on the size. Times are the means over the photographs of the
least of several calls.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project need not be installed

import numpy as np
import torch
from machine import describe
from PIL import Image

from ficklenet.label_image import label_image
from ficklenet.resampling import resize_square
from ficklenet.segmentation_inference import enlarged_probabilities
from storage.images import read_image
from storage.label_folder import encode_label_png

ROOT = Path(__file__).resolve().parents[2]
SIZES = ((500, 375), (2000, 1500), (4000, 3000))  # width, height
INPUT_SIDES = (241, 321, 401)  # of a prediction; maps need the second
MAX_SIDE = 1024  # the default of pseudo_labels.max_side and predictions.max_side


def enlarge(photograph: Path, size: tuple[int, int], path: Path) -> None:
    """Writes a photograph at another size, with grain, so that it compresses as a camera's file does."""
    pixels = np.asarray(Image.open(photograph).convert("RGB").resize(size, Image.Resampling.BICUBIC))
    grain = np.random.default_rng(0).normal(0, 3, pixels.shape)
    Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8)).save(path, quality=92)


def logits() -> np.ndarray:
    """Smooth logits float32 (7, 41, 41), of which four labels are likely."""
    fields = np.random.default_rng(0).normal(0, 3, (7, 8, 8)).astype(np.float32)
    fields[4:] -= 30
    return np.stack([np.asarray(Image.fromarray(field).resize((41, 41), Image.Resampling.BICUBIC)) for field in fields])


def mask(image: np.ndarray, *, use_crf: bool = True) -> bytes:
    """An image's labels as the bytes of a PNG."""
    scores_at = partial(enlarged_probabilities, logits())
    return encode_label_png(label_image(scores_at, image, use_crf=use_crf, max_side=MAX_SIDE))


def read_for_maps(path: str) -> object:
    return resize_square(read_image(path, target_side=INPUT_SIDES[1]), INPUT_SIDES[1])


def pseudo_label(path: str) -> object:
    return mask(read_image(path))


def prediction(path: str) -> object:
    read = read_image(path, target_side=max(INPUT_SIDES))
    image = read_image(path)
    return [resize_square(read, side) for side in INPUT_SIDES], mask(image), mask(image, use_crf=False)


WORK: dict[str, Callable[[str], object]] = {
    "read for the maps": read_for_maps,
    "pseudo-label": pseudo_label,
    "prediction": prediction,
    "of which the full image is read": read_image,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="calls for each photograph")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(describe("pydensecrf2", "numpy", "simplejpeg"))
    print(f"size | file, MB | {', ms | '.join(WORK)}, ms\n{'---|' * len(WORK)}---|---")
    photographs = sorted((ROOT / "docs/examples/photographs").glob("*.jpg"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photograph.jpg"
        for size in SIZES:
            found, num_bytes = [], []
            for photograph in photographs:
                enlarge(photograph, size, path)
                num_bytes.append(path.stat().st_size)
                found.append([least_seconds(partial(work, str(path)), options.rounds) for work in WORK.values()])
            times = " | ".join(f"{1000 * each:.1f}" for each in np.mean(found, axis=0))
            print(f"{size[0]} x {size[1]} | {np.mean(num_bytes) / 1e6:.1f} | {times}", flush=True)


def least_seconds(work: Callable[[], object], rounds: int) -> float:
    """The least processor time of several calls."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


if __name__ == "__main__":
    main()
