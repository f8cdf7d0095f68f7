"""What it costs to feed a GPU: processor time per image of reading, handing over and writing, and how busy it is kept.

    python tests/benchmarks/feed.py                              # this checkout
    python tests/benchmarks/feed.py --against ../other-checkout  # and another one, by turns in the same run
    python tests/benchmarks/feed.py --gpu-ms 0                   # without the pretended GPU, which starts a Ray

Images are drawn scenes as JPEGs of 500 x 375, and one of 4000 x 3000. The pretended GPU sleeps for so many milliseconds
an image, in a real fan-out of the project on the CPUs this process may use. It counts as busy from the arrival of a
unit's first batch for that long, in the second half of the units: before, the workers start, which takes tens of
seconds on two CPUs. Processor time of a machine that does other work too is too high: take the least of several rounds,
which is what is printed.
"""

import argparse
import contextlib
import importlib
import inspect
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from PIL import Image

from cluster.connect import connect
from cluster.fanout import Pool, Stages, fan_out
from ficklenet.drawing import draw_scene
from storage.images import read_image
from storage.location import Location
from storage.map_store import MapStore
from storage.units import Unit, plan_units

try:
    from ficklenet.resampling import resize_square
except ImportError:  # an older checkout, measured by --against
    from ficklenet.transforms import resize_square  # type: ignore[attr-defined,no-redef]

SIZE, GRID, SLOTS, UNIT_SIZE, BATCH = 321, 41, 3, 64, 32
THIS_CHECKOUT = Path(__file__).resolve().parents[2]
ROWS = {
    "read": "read and resize, 500 x 375, ms",
    "photograph": "read and resize, 4000 x 3000, ms",
    "hand_over": "hand over (pickle and unpickle), ms",
    "write": "write a shard of maps, ms",
    "busy": "pretended GPU busy, %",
}


def main() -> None:
    arguments = parsed_arguments()
    if arguments.child:
        print(json.dumps(measured(Path(arguments.child), arguments.gpu_ms, arguments.units)))
        return
    print(describe("numpy", "pillow", "scipy", "ray"))
    checkouts = [path for path in (arguments.against, THIS_CHECKOUT) if path]
    best: list[dict[str, float]] = [{} for _ in checkouts]
    with tempfile.TemporaryDirectory() as folder:
        draw_images(Path(folder))
        for _ in range(arguments.rounds):
            for number, checkout in enumerate(checkouts):
                for name, value in run_child(checkout.resolve(), folder, arguments).items():
                    better = max if name == "busy" else min
                    best[number][name] = better(value, best[number].get(name, value))
    print(f"{'':40}" + "".join(f"{checkout.resolve().name:>16}" for checkout in checkouts))
    for name, title in ROWS.items():
        if name in best[0]:
            print(f"{title:40}" + "".join(f"{values[name]:16.2f}" for values in best))


def parsed_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout of the project")
    parser.add_argument("--rounds", type=int, default=3, help="of which the best counts")
    parser.add_argument("--gpu-ms", type=float, default=3.3, help="time of an image on the pretended GPU; 0: without")
    parser.add_argument("--units", type=int, default=120, help=f"of {UNIT_SIZE} images, for the pretended GPU")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_child(checkout: Path, folder: str, arguments: argparse.Namespace) -> dict[str, float]:
    """The measurements with another checkout's packages, in a process of their own."""
    command = [sys.executable, __file__, "--child", folder, "--gpu-ms", str(arguments.gpu_ms)]
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--units", str(arguments.units)], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"feed: the measurement of {checkout} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def draw_images(folder: Path) -> None:
    """UNIT_SIZE small photographs and a large one, with grain, so that they compress as photographs do."""
    generator = np.random.default_rng(0)
    for number in range(UNIT_SIZE + 1):
        size = (4000, 3000) if number == UNIT_SIZE else (500, 375)
        scene = np.asarray(Image.fromarray(draw_scene(number).image).resize(size, Image.Resampling.BICUBIC))
        grain = generator.normal(0, 6, scene.shape)
        pixels = np.clip(scene + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=92)


# --- measured in a child ---------------------------------------------------------------------------------------


def measured(folder: Path, gpu_ms: float, num_units: int) -> dict[str, float]:
    """The rows of the table, without titles."""
    with contextlib.suppress(ImportError):  # a checkout from before
        importlib.import_module("cluster.allocator").keep_freed_memory()  # as the project's workers do
    paths = [str(folder / f"{number}.jpg") for number in range(UNIT_SIZE)]
    unit = read_unit(paths, {"unit": 0})
    with tempfile.TemporaryDirectory() as store_folder:
        store = MapStore.create(Location(store_folder), UNIT_SIZE, SLOTS, (GRID, GRID), UNIT_SIZE)
        [place] = plan_units(UNIT_SIZE, UNIT_SIZE)
        maps = made_up_maps()
        found = {
            "read": least(lambda: [read_input(path) for path in paths]) / UNIT_SIZE,
            "photograph": least(lambda: read_input(str(folder / f"{UNIT_SIZE}.jpg"))),
            "hand_over": least(lambda: pickle.loads(pickle.dumps(unit, protocol=5))) / UNIT_SIZE,
            "write": least(lambda: store.write_unit(place, *maps)) / UNIT_SIZE,
        }
    if gpu_ms > 0:
        found["busy"] = 100 * busy_share(paths, gpu_ms, num_units)
    return found


def least(function: Callable[[], object], rounds: int = 5) -> float:
    """The least processor time of a call, all threads together, in milliseconds."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)
    return 1000 * min(seconds)


def read_input(path: str) -> np.ndarray:
    """An image as the maps' reading task makes it of a file."""
    can_scale = "target_side" in inspect.signature(read_image).parameters
    options: dict[str, Any] = {"target_side": SIZE} if can_scale else {}
    return resize_square(read_image(path, **options), SIZE)


def read_unit(paths: list[str], unit: dict[str, Any]) -> dict[str, Any]:
    return unit | {"images": np.stack([read_input(path) for path in paths])}


def made_up_maps() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Max and mean, score and classes of a unit."""
    values = np.random.default_rng(0).random((UNIT_SIZE, SLOTS, GRID, GRID), dtype=np.float32)
    classes = np.tile(np.arange(SLOTS, dtype=np.int16), (UNIT_SIZE, 1))
    return values, values / 2, values[..., 0, 0], classes


class PretendedGpu:
    """Sleeps instead of computing; a unit is two batches, as on a GPU."""

    def __init__(self, gpu_ms: float) -> None:
        self._seconds, self._maps = gpu_ms / 1000 * UNIT_SIZE, made_up_maps()

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        unit["images"][:BATCH].copy()  # into page-locked memory
        start = time.time()
        unit["images"][BATCH:].copy()  # while the device computes the first batch
        time.sleep(max(0.0, start + self._seconds - time.time()))
        return {"unit": unit["unit"], "maps": self._maps, "from": start, "to": time.time()}


def write_unit(folder: str, size: int, unit: dict[str, Any]) -> dict[str, Any]:
    number = unit["unit"]
    MapStore.open(Location(folder), "r+").write_unit(Unit(number, number * size, (number + 1) * size), *unit["maps"])
    return {"from": unit["from"], "to": unit["to"]}


def busy_share(paths: list[str], gpu_ms: float, num_units: int) -> float:
    """How much of the time the pretended GPU sleeps, in the second half of the units."""
    # Ray gets 4 more CPUs than there are: the actor sleeps, and with two, only one unit is read at a time. With
    # fractions of CPUs there would be more workers than CPUs, and Ray ends such workers when they are idle.
    num_cpus = len(os.sched_getaffinity(0)) + 4
    with tempfile.TemporaryDirectory() as folder, connect("local", num_cpus):
        MapStore.create(Location(folder), num_units * UNIT_SIZE, SLOTS, (GRID, GRID), UNIT_SIZE)
        write = partial(write_unit, folder, UNIT_SIZE)
        stages = Stages(partial(PretendedGpu, gpu_ms), partial(read_unit, paths), write)
        receipts = list(fan_out([{"unit": number} for number in range(num_units)], stages, Pool()))
    times = sorted((receipt["from"], receipt["to"]) for receipt in receipts)[num_units // 2 :]
    return len(times) * UNIT_SIZE * gpu_ms / 1000 / (times[-1][1] - times[0][0])


if __name__ == "__main__":
    main()
