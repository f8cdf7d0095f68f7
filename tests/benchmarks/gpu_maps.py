"""How fast `generate_maps` runs with a GPU and all CPUs of a machine, and how busy it keeps the GPU.

    python tests/benchmarks/gpu_maps.py                # 10,000 images of 500 x 375, VGG-16 at 321 x 321, 200 samples
    python tests/benchmarks/gpu_maps.py --run RUN      # the images and the VGG-16 of a run, named repeatedly

Needs the whole project with Ray, and nvidia-smi. Without --run the images are drawn and the weights are random. The
pace and the GPU's load are those between the receipts of the first and of the last unit.
"""

import argparse
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Self

from machine import describe
from pipeline import make_run

from cluster.connect import connect
from jobs.cli.launch import launch_step
from storage.steps import Step

QUERY = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]


def main() -> None:
    options = parse_options()
    name = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"{name}; {describe('torch', 'triton', 'ray')}")
    with tempfile.TemporaryDirectory(prefix="gpu-maps-") as folder:
        run = make_run(Path(folder) / "run", options, options.images, options.size, "vgg16", device="cuda")
        started = time.time()
        with GpuLoad() as load, connect("local") as connection:
            print(f"Ray runs after {time.time() - started:.1f} s")
            launch_step(run, connection, "maps", restart=True)
        receipts = sorted(Step(run.location / "maps").receipts().values(), key=lambda receipt: receipt.finished)
    first, last = receipts[0].finished, receipts[-1].finished
    num_images = sum(receipt.stop - receipt.start for receipt in receipts[1:])
    print(f"first unit after {first - started:.1f} s")
    print(f"{num_images / (last - first):,.0f} images/s, GPU {load.between(first, last):.0f} % busy")


class GpuLoad:
    """Samples of the load of the first GPU, five a second, while its `with` block runs."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, float]] = []
        self._process = subprocess.Popen(QUERY, stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._samples.append((time.time(), float(line)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._thread.join()

    def between(self, start: float, stop: float) -> float:
        """The mean load between two times, in percent."""
        return statistics.mean(load for moment, load in self._samples if start <= moment <= stop)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="copy this run's manifest and VGG-16 classifier")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--unit-size", type=int, default=64, help="images per unit")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--size", type=int, default=321, help="side of the square input")
    return parser.parse_args()


if __name__ == "__main__":
    main()
