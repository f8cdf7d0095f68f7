"""Chaos through all steps: trainings, maps, seeds, retraining, predictions and an export, in a folder or on a slow S3.

    python tests/chaos_steps.py --runs 200                         about 20 s a run on an idle core
    python tests/chaos_steps.py --runs 1 --seed 7                  one of them again, as far as time repeats

Every step of a run is launched until it has ended well. Before that it may be killed, stopped and continued, or started
twice at the same time. In half of the runs the storage is an S3 server behind `fault_proxy.py`, which is slow and fails
while a step works; there a launch may also stop with one sentence. The networks are copied there from the undisturbed
run, because a training on S3 needs a Ray. In the end all networks, maps, seeds, masks and
exported files must have the bytes of an undisturbed run.
"""

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import chaos_faults  # noqa: E402
import conftest  # noqa: E402
import torch  # noqa: E402
from chaos_faults import Launch  # noqa: E402

from ficklenet.drawing import DRAWN_CLASS_NAMES  # noqa: E402
from jobs.preparation import demo  # noqa: E402
from jobs.preparation.prepare import prepare  # noqa: E402
from jobs.run.directory import open_run  # noqa: E402
from storage.location import Location  # noqa: E402
from storage.steps import Step  # noqa: E402

STEPS = {  # script -> its step, and where the results are in the folder of the step's data
    "train_ficklenet": ("classifier", "model.pt"),
    "generate_maps": ("maps", "maps.zarr"),
    "aggregate_seeds": ("seeds", "seeds.zarr"),
    "train_segmentation": ("segmenter", "model.pt"),
    "retrain_segmentation": ("retrained", "model.pt"),
    "predict_masks": ("predictions", "labels"),
    "export_labels": ("exports/png-predictions", ""),
}
MOST_DISTURBANCES = 2  # of one step; then it is left in peace
SETTINGS = chaos_faults.SETTINGS | {
    "unit_size": 4,
    "segmenter": {
        "backbone": "small", "weights": "classifier", "dilations": [4], "epochs": 1, "min_steps": 1, "batch_size": 4,
    },
    "predictions": {"max_side": 256},
}  # fmt: skip
FAULTS = (
    {},
    {"latency": 0.05},
    {"latency": 0.3},
    {"throttle": 0.1},
    {"fail": 0.05},
    {"reset": 0.05},
    {"truncate": 0.05},
)


def flags(script: str) -> tuple[str, ...]:
    return ("--format", "png", "--labels", "predictions") if script == "export_labels" else ()


def undisturbed(folder: Path) -> tuple[Path, dict[str, dict[str, bytes]]]:
    """A prepared run, and the results of each step: name -> bytes."""
    demo.NUM_TRAINING, demo.NUM_VALIDATION = 12, 4
    prepared, whole = folder / "prepared", folder / "undisturbed"
    prepare(
        open_run(str(prepared), defaults=SETTINGS),
        demo.draw_data_set(Location(str(folder / "data"))),
        DRAWN_CLASS_NAMES,
    )
    shutil.copytree(prepared, whole)
    for script in STEPS:
        code, text = Launch(script, str(whole), *flags(script)).end()
        assert code == 0, f"{script}: {code}: {text[-800:]}"
    expected = {}
    for script in STEPS:
        place = Path(results(str(whole), script).uri)
        files = [place] if place.is_file() else sorted(filter(Path.is_file, place.rglob("*")))
        expected[script] = {str(file.relative_to(place)): file.read_bytes() for file in files if is_result(file)}
        assert expected[script], f"{script} stores nothing in {place}"
    return prepared, expected


def upload(folder: Path, place: Location) -> None:
    """Copies all files below a local folder."""
    for file in filter(Path.is_file, folder.rglob("*")):
        (place / str(file.relative_to(folder))).write_bytes(file.read_bytes())


def is_result(file: Path) -> bool:
    return "done" not in file.parts and "drivers" not in file.parts and file.name != "step.json"


def results(run: str, script: str) -> Location:
    """Where a step's results are now."""
    step, name = STEPS[script]
    place = Location(run) / step
    data = place if name in ("", "model.pt") else Step(place).data()
    return data / name if name else data


def disturbed(
    run: str, whole: Path, expected: dict[str, dict[str, bytes]], seed: int, proxy: "Proxy | None"
) -> Counter[str]:
    """One run through all steps; what is wrong in the end.

    Args:
        whole: the undisturbed run.
    """
    chance, story, faults, started = random.Random(seed), list[str](), Counter[str](), time.monotonic()
    for script, (step, name) in STEPS.items():
        if proxy and name == "model.pt":
            proxy.set({})
            upload(whole / step, Location(run) / step)
            continue
        for _ in range(chance.randrange(MOST_DISTURBANCES + 1)):
            fault = chance.choice(FAULTS) if proxy else {}
            if proxy:
                proxy.set(fault)
            said, codes, text = disturb(script, run, chance)
            story.append(f"{script} {said}{f' {fault}' if fault else ''}: {codes}")
            if "Traceback" in text:
                faults["tracebacks"] += 1
                story.append(text[-600:])
        if proxy:
            proxy.set({})
        code, text = Launch(script, run, *flags(script)).end()
        if code:
            faults["not finished"] += 1
            story.append(f"{script}: {code}: {text[-400:]}")
            break
        place = results(run, script)
        found = {name: (place if name == "." else place / name).read_bytes() for name in expected[script]}
        if found != expected[script]:
            faults["silent"] += 1
            story.append(
                f"{script}: other bytes in {[name for name in found if found[name] != expected[script][name]][:5]}"
            )
    where = "S3" if proxy else "a folder"
    print(f"seed {seed} in {where}: {'; '.join(story)}; {time.monotonic() - started:.0f} s", flush=True)
    return faults


def disturb(script: str, run: str, chance: random.Random) -> tuple[str, list[int], str]:
    """One launch or two of a step, disturbed: what was done, the exit codes, and what the launches printed."""
    kind = chance.choice(["killed", "stopped", "twice", "ended"])
    launches = [Launch(script, run, *flags(script)) for _ in range(2 if kind == "twice" else 1)]
    time.sleep(4 * chance.random() ** 2)
    if kind == "killed":
        launches[0].send(signal.SIGKILL)
    elif kind == "ended":
        launches[0].send(signal.SIGTERM)
    elif kind == "stopped":
        launches[0].send(signal.SIGSTOP)
        time.sleep(chance.random())
        launches[0].send(signal.SIGCONT)
    ended = [launch.end() for launch in launches]
    return kind, [code for code, _ in ended], "".join(text for _, text in ended)


class Proxy:
    """The faults between the jobs and the S3 server."""

    def __init__(self, endpoint: str) -> None:
        self._server = conftest.FaultyServer(endpoint)

    def set(self, faults: dict[str, float]) -> None:
        self._server.set(**faults)


@contextmanager
def slow_s3(folder: Path) -> Iterator[Proxy]:
    """SeaweedFS behind the proxy, both on loopback; this process's environment names the proxy."""
    ports = conftest._free_ports(8)
    server = conftest.S3Server(f"http://127.0.0.1:{ports[0]}")
    (folder / "identities.json").write_text(json.dumps(conftest._identities(server)))
    with open(folder / "log", "wb") as log:
        weed = subprocess.Popen(conftest._command(folder, ports), cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    command = [sys.executable, str(ROOT / "tests/fault_proxy.py"), server.endpoint]
    proxy = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        conftest._wait_until_ready(server, weed, folder)
        assert proxy.stdout is not None
        endpoint = proxy.stdout.readline().strip()
        os.environ.update(server.environment(server.owner) | {"AWS_ENDPOINT_URL": endpoint})
        yield Proxy(endpoint)
    finally:
        for process in (proxy, weed):
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=30.0, help="no run begins after that")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first run, the others count on")
    given = parser.parse_args()
    torch.set_num_threads(1)
    chaos_faults.MAINS.update({name: importlib.import_module(f"jobs.{name}").main for name in STEPS})
    faults, done, end = Counter[str](), 0, time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        prepared, expected = undisturbed(folder)
        with slow_s3(folder) as proxy:
            for seed in range(given.seed, given.seed + given.runs):
                if time.monotonic() > end:
                    break
                if seed % 2:
                    run = f"s3://{conftest.BUCKET}/run-{seed}"
                    upload(prepared, Location(run))
                else:
                    run = str(folder / f"run-{seed}")
                    shutil.copytree(prepared, run)
                faults += disturbed(run, folder / "undisturbed", expected, seed, proxy if seed % 2 else None)
                done += 1
                Location(run).delete_tree()
    counts = ", ".join(f"{name} {faults[name]}" for name in ("silent", "not finished", "tracebacks"))
    print(f"chaos: {done} runs through all steps; {counts}.", flush=True)
    sys.exit(1 if faults.total() else 0)


if __name__ == "__main__":
    main()
