"""Chaos without Ray: stops, kills, restarts, two settings at once, and damage, by chance, against the promised bytes.

    python tests/chaos_faults.py --runs 200                        about 5 s a run on an idle core
    python tests/chaos_faults.py --runs 1 --seed 7                 one of them again, as far as time repeats

Each run draws some events. After each, `status` must give its answer or one sentence. At the end the maps and the seeds
must have the bytes of an undisturbed run with the settings that the step's record names. Launches are forked from this
process, which has imported the jobs, so that they take as long as their work. Kills of Ray's processes are in chaos.py.
"""

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402  the modules are imported once, before anything is forked

from ficklenet.drawing import DRAWN_CLASS_NAMES  # noqa: E402
from jobs.cli.command_line import run_main  # noqa: E402
from jobs.preparation import demo  # noqa: E402
from jobs.preparation.prepare import prepare  # noqa: E402
from jobs.run.directory import open_run  # noqa: E402
from storage.location import Location  # noqa: E402
from storage.steps import Step  # noqa: E402

SCRIPTS = ("train_ficklenet", "generate_maps", "aggregate_seeds", "verify", "status")
NUM_IMAGES, NUM_UNITS = 24, 12
SAMPLES = (4000, 2000)  # the two settings; a launch takes a second or two
MOST_SECONDS = 300  # of one launch: it hangs
SETTINGS = {
    "unit_size": NUM_IMAGES // NUM_UNITS,
    "images": {"input_size": 65},
    "classifier": {"backbone": "small", "weights": "none", "kernel_size": 5, "epochs": 1, "min_steps": 1},
    "seeds": {"background_cue": "evidence"},
    "cluster": {"address": "in-process"},
}


class Launch:
    """A job in a process of its own.

    Args:
        before: called in that process before the job begins.
    """

    def __init__(self, script: str, run: Path | str, *flags: str, before: Callable[[], None] = lambda: None) -> None:
        self.output = tempfile.TemporaryFile()  # noqa: SIM115  read at the end of the launch
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.dup2(self.output.fileno(), 1)
            os.dup2(self.output.fileno(), 2)
            sys.argv = [f"jobs/{script}.py", "--run", str(run), *flags]
            code = 70
            try:
                before()
                run_main(MAINS[script])
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            finally:
                sys.stdout.flush()
                os._exit(code)

    def end(self) -> tuple[int, str]:
        """Waits; the exit code, and what it printed."""
        stop = time.monotonic() + MOST_SECONDS
        while not (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            if time.monotonic() > stop:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                return -1, "hangs"
            time.sleep(0.01)
        self.output.seek(0)
        return os.waitstatus_to_exitcode(ended[1]), self.output.read().decode(errors="replace")

    @property
    def has_ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def send(self, number: int) -> None:
        os.kill(self.pid, number)


MAINS: dict[str, Callable[[list[str]], None]] = {}


def samples(number: int) -> str:
    return f"--set=maps.num_samples={number}"


def recorded_samples(run: Path) -> int:
    return json.loads((run / "maps/step.json").read_bytes())["fingerprint"]["maps"]["num_samples"]


def wait_for_work(run: Path, launch: Launch, chance: random.Random) -> None:
    """Until some receipts are written, and a moment more."""
    step, stop = Step(Location(str(run / "maps"))), time.monotonic() + 20 * chance.random()
    wanted = chance.randrange(NUM_UNITS)
    while time.monotonic() < stop and not launch.has_ended:
        if len(step.receipts()) > wanted:
            break
        time.sleep(0.01)
    time.sleep(0.05 * chance.random())


def kill(run: Path, chance: random.Random) -> str:
    launch = Launch("generate_maps", run, samples(wanted(run)))
    wait_for_work(run, launch, chance)
    launch.send(signal.SIGKILL)
    return f"killed: {launch.end()[0]}"


def stop_and_continue(run: Path, chance: random.Random) -> str:
    launch = Launch("generate_maps", run, samples(wanted(run)))
    wait_for_work(run, launch, chance)
    launch.send(signal.SIGSTOP)
    time.sleep(chance.random())
    launch.send(signal.SIGCONT)
    return f"stopped and continued: {launch.end()[0]}"


def zombie(run: Path, chance: random.Random) -> str:
    """A driver that is suspended for longer than its heartbeat counts, and wakes during or after a restart."""
    first = wanted(run)
    other = SAMPLES[SAMPLES.index(first) - 1]
    asleep = Launch("generate_maps", run, samples(first))
    wait_for_work(run, asleep, chance)
    asleep.send(signal.SIGSTOP)
    for beat in (run / "maps/drivers").glob("*.json"):
        os.utime(beat, (1e9, 1e9))  # as old as after a long sleep
    again = Launch("generate_maps", run, samples(other), "--restart", "maps")
    if chance.random() < 0.5:
        time.sleep(chance.random())
        asleep.send(signal.SIGCONT)  # while the other one works
    code, text = again.end()
    asleep.send(signal.SIGCONT)
    return f"zombie: {asleep.end()[0]}, restart: {code}{'' if code == 0 else text[-200:]}"


def two_settings(run: Path, chance: random.Random) -> str:
    launches = [Launch("generate_maps", run, samples(number)) for number in chance.sample(SAMPLES, 2)]
    return f"two settings at once: {sorted(launch.end()[0] for launch in launches)}"


def two_launches(run: Path, chance: random.Random) -> str:
    launches = [Launch("generate_maps", run, samples(wanted(run))) for _ in range(2)]
    return f"two launches at once: {sorted(launch.end()[0] for launch in launches)}"


def damage(run: Path, chance: random.Random) -> str:
    """Flips, cuts, deletions and exchanges of stored objects, while a verification works or before it."""
    if not (run / "maps/step.json").exists():
        return "nothing to damage"
    folder = Path(Step(Location(str(run / "maps"))).data().uri)
    files = [file for name in ("maps.zarr", "done") for file in sorted((folder / name).rglob("*")) if file.is_file()]
    if not files:
        return "nothing to damage"
    verification = Launch("verify", run) if chance.random() < 0.5 else None
    what = []
    for file in chance.sample(files, min(len(files), chance.randrange(1, 4))):
        data = bytearray(file.read_bytes())
        kind = chance.choice(["flip", "cut", "delete", "exchange"])
        what.append(f"{kind} {file.relative_to(folder)}")
        if kind == "flip" and data:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            file.write_bytes(data)
        elif kind == "cut":
            file.write_bytes(data[: chance.randrange(len(data) + 1)])
        elif kind == "delete":
            file.unlink()
        else:
            file.write_bytes(chance.choice(files).read_bytes() if file.parent.name != "done" else b"[]")
    if verification:
        verification.end()
    code, text = Launch("verify", run, "--repair").end()
    return f"{', '.join(what)}; repair: {code}{'' if code == 0 else text[-300:]}"


EVENTS = (kill, stop_and_continue, zombie, two_settings, two_launches, damage)


def wanted(run: Path) -> int:
    return recorded_samples(run) if (run / "maps/step.json").exists() else SAMPLES[0]


def objects(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and not file.name.endswith(".partial"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def must(script: str, run: Path, *flags: str) -> None:
    code, text = Launch(script, run, *flags).end()
    assert code == 0, f"{script}: {code}: {text[-500:]}"


def undisturbed(folder: Path) -> tuple[Path, dict[int, tuple[dict[str, bytes], dict[str, bytes]]]]:
    """A prepared and trained run without maps, and the bytes of maps and seeds for each of the settings."""
    demo.NUM_TRAINING, demo.NUM_VALIDATION = NUM_IMAGES, 0
    prepared = folder / "prepared"
    run = open_run(str(prepared), defaults=SETTINGS)
    prepare(run, demo.draw_data_set(Location(str(folder / "data"))), DRAWN_CLASS_NAMES)
    must("train_ficklenet", prepared)
    expected = {}
    for number in SAMPLES:
        copy = folder / f"undisturbed-{number}"
        shutil.copytree(prepared, copy)
        must("generate_maps", copy, samples(number))
        must("aggregate_seeds", copy, samples(number))
        expected[number] = objects(copy / "maps/maps.zarr"), objects(copy / "seeds/seeds.zarr")
    return prepared, expected


def disturbed(folder: Path, prepared: Path, expected: dict, seed: int, faults: Counter[str]) -> None:
    """One run; what is wrong in the end is counted."""
    chance, run, story = random.Random(seed), folder / f"run-{seed}", []
    shutil.copytree(prepared, run)
    started = time.monotonic()
    for _ in range(chance.randrange(1, 5)):
        event = chance.choice(EVENTS)
        story.append(event(run, chance))
        code, text = Launch("status", run).end()
        if code not in (0, 2) or "Traceback" in text:
            story.append(f"status: {code}: {text[-300:]}")
            faults["tracebacks"] += 1
    number = wanted(run)
    for script in ("generate_maps", "aggregate_seeds"):
        code, text = Launch(script, run, samples(number)).end()
        if code:
            faults["not finished"] += 1
            story.append(f"{script}: {code}: {text[-400:]}")
    maps, seeds = (Step(Location(str(run / name))) for name in ("maps", "seeds"))
    found = objects(Path(maps.data().uri) / "maps.zarr"), objects(Path(seeds.data().uri) / "seeds.zarr")
    for name, step, is_there, should in zip(("maps", "seeds"), (maps, seeds), found, expected[number], strict=True):
        units = list(step.receipts())
        faults["lost"] += len(set(range(NUM_UNITS)) - set(units))
        faults["double"] += len(units) - len(set(units))
        if is_there != should:
            names = sorted(key for key in is_there.keys() | should.keys() if is_there.get(key) != should.get(key))
            story.append(f"{name}: other bytes in {names[:5]}")
            faults["silent"] += 1
    print(f"seed {seed}: {'; '.join(story)}; {time.monotonic() - started:.0f} s", flush=True)
    shutil.rmtree(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=30.0, help="no run begins after that")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first run, the others count on")
    given = parser.parse_args()
    torch.set_num_threads(1)
    MAINS.update({name: importlib.import_module(f"jobs.{name}").main for name in SCRIPTS})
    faults, done, end = Counter[str](), 0, time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory() as folder:
        prepared, expected = undisturbed(Path(folder))
        for seed in range(given.seed, given.seed + given.runs):
            if time.monotonic() < end:
                disturbed(Path(folder), prepared, expected, seed, faults)
                done += 1
    counts = ", ".join(f"{name} {faults[name]}" for name in ("lost", "double", "silent", "not finished", "tracebacks"))
    print(f"chaos: {done} runs; {counts}.", flush=True)
    sys.exit(1 if faults.total() else 0)


if __name__ == "__main__":
    main()
