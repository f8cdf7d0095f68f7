"""Millions of images in units of 256: plans, resume and status over made-up markers, and the hand-over to Ray.

    python tests/benchmarks/million.py                          a million images in a temporary folder
    python tests/benchmarks/million.py --images 5000000         five million: about a minute to make, 300 MB
    python tests/benchmarks/million.py --run s3://bucket/prefix what lies there already is used again
    python tests/benchmarks/million.py --ray                    also a fan-out of 15,625 units that do nothing

Nothing is computed: the manifest names images that do not exist, and the markers of nine units in ten are written
by hand. Goal for 5 million: 10 s for status; 20 s, and 500 MB beyond the imports, for the plan of any step.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from machine import describe

from cluster.connect import connect, resources
from cluster.fanout import Payload, Pool, Stages, fan_out
from jobs.maps.maps_job import num_slots
from jobs.reporting.run_status import run_status
from jobs.run.directory import Run, open_run, record_run
from jobs.run.steps import BY_NAME
from jobs.steps.launch import LaunchOptions, UnitPlan
from jobs.training import classifier_job
from jobs.training.segmenter_job import check_images
from storage.image_identity import images_id
from storage.manifest import ManifestRow, write_manifest
from storage.steps import Receipt, Skipped, Step
from storage.units import Unit, plan_units

UNIT_SIZE, NUM_CLASSES = 256, 20
NUM_UNITS_OF_64 = 15_625
SETTINGS = [f"unit_size={UNIT_SIZE}", "classifier.backbone=small", "classifier.weights=none"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", metavar="PATH", help="where to make the run; default: a temporary folder")
    parser.add_argument("--images", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--ray", action="store_true", help="also hand the units to an own Ray")
    parser.add_argument("--measure", choices=MEASURED, help=argparse.SUPPRESS)  # one figure, in a process of its own
    given = parser.parse_args()
    if given.measure:
        measure(given.measure, given.run)
        return
    print(describe("ray", "pyarrow", "s3fs"))
    with tempfile.TemporaryDirectory() as folder:
        uri = given.run or f"{folder}/run"
        make_run(open_run(uri, None, SETTINGS), given.images)
        for name in MEASURED[: None if given.ray else -1]:
            subprocess.run([sys.executable, __file__, "--measure", name, "--run", uri], check=True)


def rows(num_images: int) -> Iterator[ManifestRow]:
    for number in range(num_images):
        labels = tuple(sorted({number % NUM_CLASSES, number // 7 % NUM_CLASSES}))
        address, split = f"s3://photos/{number // 1000:06d}/photo_{number:09d}.jpg", "train" if number % 50 else "val"
        yield ManifestRow(f"photo_{number:09d}", address, labels, split=split)


def make_run(run: Run, num_images: int) -> None:
    """A run of which nine units in ten are finished."""
    manifest = run.location / "manifest.parquet"
    if manifest.exists():
        return
    started, step = time.monotonic(), Step(run.location / "maps")
    write_manifest(manifest, rows(num_images), [f"class {number}" for number in range(NUM_CLASSES)])
    record_run(run)
    fingerprint, images = {"unit_size": UNIT_SIZE, "upstream": {}}, images_id(run.manifest())
    start_id = step.open(fingerprint, "python jobs/generate_maps.py", images=images)
    finished = [unit for unit in plan_units(num_images, UNIT_SIZE) if unit.index % 10]

    def write(unit: Unit) -> None:
        skipped = (Skipped(f"photo_{unit.start:09d}", "empty file"),)
        body = Receipt(unit.index, unit.start, unit.stop, 12.5, 1.7e9 + unit.index, skipped, start_id).to_json()
        (step.location / "done" / f"{unit.name}.json").write_bytes(body)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, finished))
    print(f"made {len(finished):,} markers and the manifest in {time.monotonic() - started:.0f} s", flush=True)


def plan(run: Run) -> str:
    """What a launch of the maps reads of the manifest before it begins."""
    manifest = run.manifest()
    fingerprint = manifest.column_hash(BY_NAME["maps"].columns)
    slots, units = num_slots(manifest, run.config), plan_units(manifest.num_images, UNIT_SIZE)
    return f"{len(units):,} units, {slots} slots, fingerprint {fingerprint[:8]}"


def resume(run: Run) -> str:
    """What a relaunch reads of the markers."""
    units = plan_units(run.manifest().num_images, UNIT_SIZE)
    rows = UnitPlan.of(run, run.step("maps"), units, LaunchOptions()).rows({})
    return f"{len(rows):,} units missing"


def training(run: Run) -> str:
    """The plan of the classifier's training, without the weights of a network."""
    with connect("in-process") as connection:
        job = classifier_job.make_job(run, connection)
    return f"{job.plan.num_images:,} images, {job.plan.steps:,} steps"


def segmentation(run: Run) -> str:
    """What the plan of the segmentation network's training reads of the manifest."""
    images = check_images(run.config, run.manifest())
    return f"{images:,} images, fingerprint {run.manifest().column_hash(BY_NAME['segmenter'].columns)[:8]}"


def status(run: Run) -> str:
    """`jobs/status.py`."""
    step = run_status(run).steps[1]
    return f"{step.done:,} done, {sum(map(len, step.skipped.values())):,} skipped, {step.left:,} left"


def hand_over(run: Run) -> str:
    """All units through a fan-out that does nothing, as far as the first hundred receipts."""
    units, started = [{"unit": index} for index in range(NUM_UNITS_OF_64)], time.monotonic()
    with connect("local", num_cpus=4):
        resources()
        began = time.monotonic()
        receipts = fan_out(units, Stages(lambda: same, same, same), Pool())
        first = next(receipts)
        told = f"Ray up after {began - started:.1f} s, first receipt {time.monotonic() - began:.1f} s later"
        hundred = [first, *(next(receipts) for _ in range(99))]
        receipts.close()
    return f"{told}, {len(hundred)} receipts after {time.monotonic() - began:.1f} s"


def same(payload: Payload) -> Payload:
    return payload


MEASURED = ("plan", "resume", "training", "segmentation", "status", "hand_over")


def measure(name: str, uri: str) -> None:
    """One figure, in this fresh process, whose memory begins with that of the imported libraries."""
    run, before, started, used = open_run(uri), peak_mb(), time.monotonic(), time.process_time()
    found = globals()[name](run)
    seconds, processor = time.monotonic() - started, time.process_time() - used
    figures = {"what": name, "seconds": round(seconds, 2), "processor_seconds": round(processor, 2)}
    figures |= {"mb": peak_mb(), "mb_before": before}
    print(json.dumps(figures | {"found": found}), flush=True)


def peak_mb() -> int:
    """The most memory this process had; not getrusage's, which begins with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024


if __name__ == "__main__":
    main()
