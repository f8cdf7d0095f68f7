"""Chaos: a small job, again and again, each launch with a SIGKILL somewhere at a random time, until it is done.

    make chaos                                                     20 runs, at most 30 minutes
    python tests/chaos.py --runs 50 --minutes 60 --seed 7

Killed is the driver, a worker process, or the node (the raylet, with which an own Ray ends). Every run must end with
the bytes of an undisturbed one, with no unit missing, and with no object beside those documented in
docs/operations.md. The seed of every run is printed, and `--seed N --runs 1` repeats it, as far as time repeats.
"""

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.connect import connect
from ficklenet.drawing import DRAWN_CLASS_NAMES
from jobs.cli.launch import launch_step
from jobs.preparation import demo
from jobs.preparation.prepare import prepare
from jobs.run.directory import open_run
from storage.location import Location
from storage.steps import Step

ROOT = Path(__file__).resolve().parents[1]
NUM_IMAGES, NUM_UNITS = 24, 12
MOST_SECONDS = 600  # of one launch: it hangs
MOST_KILLS = 2  # of one run; then it is left in peace
SETTINGS = {
    "unit_size": NUM_IMAGES // NUM_UNITS,
    "images": {"input_size": 65},
    "classifier": {"backbone": "small", "weights": "none", "kernel_size": 5, "epochs": 1, "min_steps": 1},
    "maps": {"num_samples": 200},
    "cluster": {"cpus": 3, "max_actors": 2},
}
DOCUMENTED = re.compile(r"(.*/)?[^/]+\.[0-9a-f]{32}\.partial|drivers/[\w-]+\.json")  # what a kill may leave


@dataclass(frozen=True)
class Victim:
    """What is killed, and in which kind of launch it is found."""

    name: str
    address: str


VICTIMS = [
    Victim("driver", "in-process"),
    Victim("driver", "local"),
    Victim("worker", "local"),
    Victim("node", "local"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=30.0, help="no run begins after that")
    parser.add_argument("--at-once", type=int, default=2, help="runs at the same time: most of a launch is waiting")
    parser.add_argument("--seed", type=int, help="of the first run, the others count on; default: the clock")
    parser.add_argument("--address", choices=["in-process", "local"], help="only launches of this kind; default: both")
    given = parser.parse_args()
    victims = [victim for victim in VICTIMS if given.address in (None, victim.address)]
    first, end = given.seed if given.seed is not None else int(time.time()), time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory() as folder:
        prepared, expected = undisturbed(Path(folder))

        def run(seed: int) -> bool:
            in_time = time.monotonic() < end
            if in_time:
                disturbed(Path(folder), prepared, expected, victims, seed)
            return in_time

        with ThreadPoolExecutor(given.at_once) as pool:
            done = sum(pool.map(run, range(first, first + given.runs)))
    print(f"chaos: {done} runs, all with the bytes of the undisturbed one.", flush=True)
    if done < given.runs:
        sys.exit(f"chaos: {given.runs - done} runs did not begin within {given.minutes:g} minutes.")


def undisturbed(folder: Path) -> tuple[Path, dict[str, bytes]]:
    """A prepared and trained run without maps, and the bytes that its maps must have."""
    demo.NUM_TRAINING, demo.NUM_VALIDATION = NUM_IMAGES, 0
    run = open_run(str(folder / "prepared"), defaults=SETTINGS)
    prepare(run, demo.draw_data_set(Location(str(folder / "data"))), DRAWN_CLASS_NAMES)
    with connect("in-process") as connection:
        launch_step(run, connection, "classifier")
        shutil.copytree(folder / "prepared", folder / "undisturbed")
        launch_step(open_run(str(folder / "undisturbed")), connection, "maps")
    return folder / "prepared", objects(folder / "undisturbed" / "maps" / "maps.zarr")


def disturbed(folder: Path, prepared: Path, expected: dict[str, bytes], victims: list[Victim], seed: int) -> None:
    """One run, launched until it is done; raises AssertionError where it is not as the undisturbed one."""
    chance, run = random.Random(seed), folder / f"run-{seed}"
    shutil.copytree(prepared, run)
    started, story = time.monotonic(), []
    for _ in range(MOST_KILLS):
        code, what = launch(run, chance.choice(victims), chance)
        story.append(what)
        if code == 0:
            break
    else:
        code, what = launch(run, Victim("nobody", "in-process"), chance)
        story.append(what)
    assert code == 0, f"seed {seed}: {story}"
    found = objects(run / "maps")
    maps = {name.removeprefix("maps.zarr/"): data for name, data in found.items() if name.startswith("maps.zarr/")}
    strays = {name for name in found if DOCUMENTED.fullmatch(name)}
    maps = {name: data for name, data in maps.items() if f"maps.zarr/{name}" not in strays}
    assert maps == expected, f"seed {seed}: other bytes in {sorted(set(maps) ^ set(expected)) or 'shards'}: {story}"
    units = {f"done/{number:06d}.json" for number in range(NUM_UNITS)}
    others = {name for name in found if not name.startswith("maps.zarr/")} - strays
    assert others == units | {"step.json"}, f"seed {seed}: stray objects {sorted(others - units)}: {story}"
    assert len(Step(Location(str(run / "maps"))).receipts()) == NUM_UNITS
    seconds = time.monotonic() - started
    print(f"seed {seed}: {'; '.join(story)}; {len(strays)} documented strays, {seconds:.0f} s", flush=True)
    shutil.rmtree(run)


def launch(run: Path, victim: Victim, chance: random.Random) -> tuple[int, str]:
    """One launch, with its victim killed while the units run; its exit code, and what was done to it."""
    command = [sys.executable, "jobs/generate_maps.py", "--run", str(run), "--set", f"cluster.address={victim.address}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    job = psutil.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **quiet)
    receipts = Step(Location(str(run / "maps")))
    wait_for, pause = chance.randrange(NUM_UNITS // 2), chance.random() * 0.5
    before = len(receipts.receipts())
    while job.poll() is None and len(receipts.receipts()) < before + wait_for:
        time.sleep(0.02)
    time.sleep(pause)
    prey = None
    while job.poll() is None and prey is None and victim.name != "nobody":  # Ray's processes take their time to come
        prey = find(job, victim.name, chance)
    children = job.children(recursive=True) if job.is_running() and job.poll() is None else []
    if prey is not None:
        try:
            prey.kill()
        except psutil.NoSuchProcess:
            prey = None
    code = job.wait(timeout=MOST_SECONDS)
    _, alive = psutil.wait_procs(children, timeout=300)  # an own Ray ends with its driver, in its own time
    assert not alive, f"left behind: {alive}"
    what = f"{victim.name} killed" if prey is not None else "nothing to kill"
    return code, f"{what} after {wait_for} units ({victim.address}): {code}"


def find(job: psutil.Process, kind: str, chance: random.Random) -> psutil.Process | None:
    """A process of that kind among the job's own."""
    if kind == "driver":
        return job
    found = []
    for child in job.children(recursive=True):
        try:
            name = child.name() + " " + " ".join(child.cmdline()[:1])
        except psutil.Error:
            continue
        is_worker = "ray::" in name and "Agent" not in name  # with an agent its node would end
        if (kind == "worker" and is_worker) or (kind == "node" and name.startswith("raylet")):
            found.append(child)
    return chance.choice(found) if found else None


def objects(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


if __name__ == "__main__":
    main()
