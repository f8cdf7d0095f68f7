"""What the distributed job costs beside a bare loop over the same images, and where an image's time goes; CPU only.

    python tests/benchmarks/pipeline.py steady               # Ray against two bare loops, VGG-16 at 321: 16 minutes
    python tests/benchmarks/pipeline.py flat                 # cost per image from 100 to 10,000 small images
    python tests/benchmarks/pipeline.py stages               # read, backbone, localise, store, hand over: ms per image

steady: the bare loop is two processes of one thread; each reads its half of the images, decodes, runs the backbone,
samples, and keeps nothing. `generate_maps` does the same on a Ray of two CPUs with two one-thread actors, and stores.
Both sides are timed from the receipt of the second unit to that of the last one, so start-up is left out, and
reported apart. The bare loop runs before and after Ray; the ratio is against the mean of the two.

Images are drawn, weights are random, unless --run names a prepared and trained run, which is copied and not changed.
"""

import argparse
import hashlib
import json
import os
import pickle
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as Ray sets it for its workers; before numpy is imported

import numpy as np
import torch
from machine import describe
from PIL import Image

from cluster.connect import connect
from ficklenet.classifier import ClassifierSpec, FickleNet, pack_classifier
from ficklenet.drawing import DRAWN_CLASS_NAMES, draw_scene
from jobs.cli.launch import launch_step
from jobs.maps.map_maker import MapMaker
from jobs.maps.map_stages import MapStages
from jobs.run.directory import MAPS, Run, open_run
from jobs.steps.launch import LaunchOptions, UnitPlan
from jobs.steps.networks import require_network
from jobs.steps.unit_rows import UnitRow
from storage.manifest import ManifestRow, write_manifest
from storage.map_store import MapStore
from storage.steps import Step
from storage.units import plan_units

NUM_WORKERS = 2
NUM_DRAWN = 64  # different images; a run of more names them repeatedly
FRAME = (375, 500)  # height and width of a usual photograph of PASCAL VOC


class Pace(NamedTuple):
    """How fast finished units came."""

    start_up: float  # seconds to the first finished unit
    per_image: float  # seconds an image, once the units of the warm-up are finished

    @classmethod
    def of(cls, started: float, finished: Sequence[tuple[float, int]], warm_up: int = NUM_WORKERS) -> "Pace":
        """From (time, images) of every finished unit."""
        in_order = sorted(finished)
        first, begin, end = (in_order[number][0] for number in (0, warm_up - 1, -1))
        return cls(first - started, (end - begin) / sum(count for _, count in in_order[warm_up:]))


def main() -> None:
    options = parse_options()
    print(describe("torch", "numba", "ray", "zarr"))
    with tempfile.TemporaryDirectory(prefix="pipeline-") as folder:
        {"steady": steady, "flat": flat, "stages": stages}[options.part](options, Path(folder))


# --- steady: Ray against the bare loop ----------------------------------------------------------------------------


def steady(options: argparse.Namespace, folder: Path) -> None:
    run = make_run(folder / "run", options, options.images, options.size, "vgg16")
    rows = rows_of(run)
    print(
        f"{run.manifest().num_images} images in units of {run.config.unit_size}, {options.samples} samples\n",
        flush=True,
    )
    before, ray, after = bare_loop(run, rows), on_ray(run), bare_loop(run, rows)
    print("\nside | first unit after s | ms per image, two workers")
    print("--- | --- | ---")
    for name, pace in (("bare loop, before", before), ("Ray", ray), ("bare loop, after", after)):
        print(f"{name} | {pace.start_up:.1f} | {1e3 * pace.per_image:.1f}")
    print(f"\nbare loop / Ray: {(before.per_image + after.per_image) / 2 / ray.per_image:.3f}")


def bare_loop(run: Run, rows: list[UnitRow]) -> Pace:
    """Every second unit in each of two processes."""
    started = time.time()
    with ProcessPoolExecutor(NUM_WORKERS, mp_context=get_context("spawn")) as pool:
        halves = [pool.submit(run_bare, stages_of(run), rows[worker::NUM_WORKERS]) for worker in range(NUM_WORKERS)]
        return Pace.of(started, [unit for half in halves for unit in half.result()])


def run_bare(stages: MapStages, rows: list[UnitRow]) -> list[tuple[float, int]]:
    """Reads and computes some units in this process; when each was finished, and its images."""
    compute, finished = MapMaker(stages), []
    for row in rows:
        compute(stages.read(row))
        finished.append((time.time(), row["unit"].num_rows))
    return finished


def on_ray(run: Run, warm_up: int = NUM_WORKERS) -> Pace:
    """`generate_maps` on an own Ray; Ray's own start counts as start-up."""
    started = time.time()
    with connect("local", num_cpus=NUM_WORKERS) as connection:
        launch_step(run, connection, "maps", restart=True)
    receipts = Step(run.location / "maps").receipts().values()
    return Pace.of(started, [(receipt.finished, receipt.stop - receipt.start) for receipt in receipts], warm_up)


# --- flat: the cost of an image does not grow with their number ----------------------------------------------------


def flat(options: argparse.Namespace, folder: Path) -> None:
    options.unit_size, options.samples = 20, 20
    print("images of 65 x 65, the small backbone, 20 samples, units of 20\n")
    print("images | first unit after s | ms per image, second half | whole s")
    print("--- | --- | --- | ---", flush=True)
    for num_images in options.counts:
        run = make_run(folder / str(num_images), options, num_images, 65, "small")
        started = time.time()
        pace = on_ray(run, warm_up=num_images // options.unit_size // 2)
        row = f"{num_images:,} | {pace.start_up:.1f} | {1e3 * pace.per_image:.2f} | {time.time() - started:.1f}"
        print(row, flush=True)
        shutil.rmtree(folder / str(num_images))


# --- stages: where the time goes -----------------------------------------------------------------------------------


def stages(options: argparse.Namespace, folder: Path) -> None:
    """Wall time of each stage in this process, one thread: the median over units after the first."""
    torch.set_num_threads(1)
    run = make_run(folder / "run", options, options.images, options.size, "vgg16")
    job, unit_size = stages_of(run), run.config.unit_size
    MapStore.create(run.data("maps") / MAPS, run.manifest().num_images, job.num_slots, job.grid, unit_size)
    print(f"units of {unit_size} images, {job.num_slots} slots, {options.samples} samples, one thread\n")
    compute = TimedMapMaker(job)
    rows = rows_of(run)
    times = [stage_seconds(job, compute, row) for row in rows]
    print("stage | ms per image | of the backbone")
    print("--- | --- | ---")
    for name in times[0]:
        value, backbone = (statistics.median(taken[key] for taken in times[1:]) for key in (name, "backbone"))
        print(f"{name} | {1e3 * value / unit_size:.2f} | {value / backbone:.1%}")


class TimedMapMaker(MapMaker):
    """Notes how much of its time is the backbone's."""

    backbone_seconds = 0.0

    def features(self, images: np.ndarray | torch.Tensor) -> torch.Tensor:
        started = time.perf_counter()
        features = super().features(images)
        self.backbone_seconds += time.perf_counter() - started
        return features


def stage_seconds(job: MapStages, compute: TimedMapMaker, row: UnitRow) -> dict[str, float]:
    """One unit through the stages, as it goes through Ray: pickled from one to the next."""
    stamps = [time.perf_counter()]

    def lap() -> float:
        stamps.append(time.perf_counter())
        return stamps[-1] - stamps[-2]

    taken = {}
    images = job.read(row)
    taken["read: fetch, decode, resize"] = lap()
    images = pickle.loads(pickle.dumps(images, pickle.HIGHEST_PROTOCOL))
    taken["hand the images over"] = lap()
    compute.backbone_seconds = 0.0
    maps = compute(images)
    taken["backbone"], taken["localise"] = compute.backbone_seconds, lap() - compute.backbone_seconds
    maps = pickle.loads(pickle.dumps(maps, pickle.HIGHEST_PROTOCOL))
    taken["hand the maps over"] = lap()
    job.write(maps)
    taken["write: open, shard, sync, receipt"] = lap()
    return taken


# --- the run that is measured --------------------------------------------------------------------------------------


def make_run(
    folder: Path, options: argparse.Namespace, num_images: int, size: int, backbone: str, device: str = "cpu"
) -> Run:
    """A prepared run of so many images with a classifier: a copy of --run, or drawn and random."""
    settings = {
        "unit_size": options.unit_size,
        "images": {"input_size": size},
        "classifier": {"backbone": backbone},
        "maps": {"num_samples": options.samples, "device": device},
    }
    run = open_run(str(folder), defaults=settings)
    if options.run and backbone == "vgg16":
        source = open_run(options.run)
        rows, class_names = source.manifest().rows(0, source.manifest().num_images), source.manifest().class_names
        shutil.copytree(Path(source.uri) / "classifier", folder / "classifier")
    else:
        rows, class_names = drawn_rows(folder / "data", FRAME if size > 65 else (65, 65)), DRAWN_CLASS_NAMES
        write_classifier(run, ClassifierSpec(backbone, class_names, input_size=size))
    copies = (rows[number % len(rows)] for number in range(num_images))
    named = (replace(row, image_id=f"image_{number:06d}") for number, row in enumerate(copies))
    write_manifest(run.location / "manifest.parquet", named, class_names)
    return run


def drawn_rows(folder: Path, frame: tuple[int, int]) -> list[ManifestRow]:
    """Drawn photographs as JPEG files, with their labels."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(NUM_DRAWN):
        scene, file = draw_scene(number, size=frame), folder / f"{number}.jpg"
        Image.fromarray(scene.image).save(file, quality=90)
        rows.append(ManifestRow(str(number), str(file), scene.labels))
    return rows


def write_classifier(run: Run, spec: ClassifierSpec) -> None:
    """A classifier of random weights, as a finished training leaves one."""
    torch.manual_seed(0)
    data = pack_classifier(FickleNet(spec))
    (run.location / "classifier" / "model.pt").write_bytes(data)
    geometry = {name: value for name, value in vars(spec).items() if name != "class_names"}
    record = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "metrics": {},
        "class_names": spec.class_names,
        "geometry": geometry,
    }
    (run.location / "classifier" / "complete.json").write_bytes(json.dumps(record).encode())


def stages_of(run: Run) -> MapStages:
    """The stages that `generate_maps` makes of a run, on a CPU."""
    classifier = require_network(run, "classifier", "pipeline")
    stages = MapStages(run, classifier.spec.grid, run.manifest().max_labels(), "cpu")
    stages.step.open({"upstream": {}}, "")  # as the driver does; workers look for it
    return stages


def rows_of(run: Run) -> list[UnitRow]:
    """All units as the driver hands them out."""
    units = plan_units(run.manifest().num_images, run.config.unit_size)
    return UnitPlan.of(run, stages_of(run).step, units, LaunchOptions()).rows({})


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="The distributed job beside a bare loop; where an image's time goes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("part", choices=["steady", "flat", "stages"])
    parser.add_argument("--run", help="copy this run's manifest and VGG-16 classifier (steady, stages)")
    parser.add_argument("--images", type=int, default=640, help="images (steady, stages)")
    parser.add_argument("--unit-size", type=int, default=32, help="images per unit (steady, stages)")
    parser.add_argument("--samples", type=int, default=200, help="N (steady, stages)")
    parser.add_argument("--size", type=int, default=321, help="side of the square input (steady, stages)")
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 1000, 10000], help="numbers of images (flat)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
