"""Flips single bits by chance in the files of a finished run: who finds each, and does `verify --repair` restore it?

    python tests/chaos_flips.py --flips 1000                       about 0.3 s a flip on an idle core

A flip counts as found if opening the run, its status, `verify` or a launch of a step that reads the file says so in one
sentence. Flips in results of unit steps are found by `verify`. One in ten of these is repaired, and all results must
then have their bytes again; the others are put back from a copy.
"""

import argparse
import contextlib
import importlib
import io
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import chaos_faults  # noqa: E402
import chaos_steps  # noqa: E402
import torch  # noqa: E402

from cluster.connect import connect  # noqa: E402
from jobs import status, verify  # noqa: E402
from jobs.cli.launch import launch_step  # noqa: E402
from jobs.run.directory import open_run  # noqa: E402
from jobs.run.steps import TRAININGS, UNIT_STEPS  # noqa: E402
from jobs.run.training_record import kept_bytes  # noqa: E402
from storage.location import Location  # noqa: E402
from storage.manifest import Manifest, ManifestRow  # noqa: E402

NOT_RESULTS = ("drivers", "checkpoints", "logs", "exports")  # heartbeats, what resumes a training, and what users own
RESULTS = ("model.pt", "complete.json", "metrics.jsonl", "step.json", "run.json", "manifest.parquet")
REPAIRED = 0.1


def stored_files(run: Path) -> list[Path]:
    """All files whose bytes mean something to a later job."""
    files = (file for file in sorted(run.rglob("*")) if file.is_file() and not {*NOT_RESULTS} & {*file.parts})
    return [
        file for file in files if file.name in RESULTS or {"done", "labels"} & {*file.parts} or ".zarr" in str(file)
    ]


def results(run: Path) -> dict[str, bytes]:
    """The stored bytes, but for receipts, which hold times, and run.json, which names the code of the last launch."""
    files = (file for file in stored_files(run) if file.parent.name != "done" and file.name != "run.json")
    return {str(file): file.read_bytes() for file in files}


def finder(run: Path, file: Path) -> str:
    """Who says in one sentence that something is wrong; "" for nobody."""
    readers = {"status": lambda: status.main(["--run", str(run)]), "verify": lambda: verify.main(["--run", str(run)])}
    if file.name == "model.pt":
        readers = {"whoever loads it": lambda: kept_bytes(open_run(str(run)), file.parent.name)}
    for name, read in readers.items():
        try:
            read()
        except ValueError as error:  # the jobs print it as their one sentence
            return name if "\n" not in str(error) else ""
    for row in (*TRAININGS, *UNIT_STEPS):  # fingerprints hold what the manifest says
        if not (run / row.name / "step.json").exists():
            continue
        try:
            with connect("in-process") as connection:
                launch_step(open_run(str(run)), connection, row.name)
        except ValueError:
            return "a launch"
    return ""


def content(run: Path) -> str:
    manifest = Manifest.open(Location(str(run / "manifest.parquet")))
    return manifest.column_hash([field.name for field in fields(ManifestRow)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=30.0, help="no flip is made after that")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    given = parser.parse_args()
    torch.set_num_threads(1)
    chance, found, missed = random.Random(given.seed), Counter[str](), list[str]()
    done, repairs, end = 0, 0, time.monotonic() + 60 * given.minutes
    chaos_faults.MAINS.update({name: importlib.import_module(f"jobs.{name}").main for name in chaos_steps.STEPS})
    with tempfile.TemporaryDirectory() as text:
        chaos_steps.undisturbed(Path(text))
        run = Path(text) / "undisturbed"
        whole, meaning = results(run), content(run)
        kinds = dict[str, list[Path]]()
        for file in stored_files(run):
            kinds.setdefault(kind_of(run, file), []).append(file)
        while done < given.flips and time.monotonic() < end:
            kind = chance.choice(sorted(kinds))
            file = chance.choice(kinds[kind])
            good = file.read_bytes()
            bad, position = bytearray(good), chance.randrange(8 * len(good))
            bad[position // 8] ^= 1 << position % 8
            file.write_bytes(bad)
            Manifest.forget()
            with contextlib.redirect_stdout(io.StringIO()):
                who = finder(run, file)
                if who == "verify" and chance.random() < REPAIRED:
                    verify.main(["--run", str(run), "--repair"])
                    assert results(run) == whole, f"seed {given.seed}: {file} is not repaired"
                    repairs += 1
                else:
                    if not who and file.name == "manifest.parquet" and content(run) == meaning:
                        who = "nobody, but the manifest says the same"
                    file.write_bytes(good)
            Manifest.forget()
            found[who] += 1
            missed += [] if who else [f"bit {position} of {file.relative_to(run)}"]
            done += 1
            if done % 50 == 0:
                print(f"{done} flips: {dict(found)}, {repairs} repaired", flush=True)
    print(
        f"flips: {done} in {len(kinds)} kinds of files, seed {given.seed}; found by {dict(found)}; {repairs} repaired."
    )
    print("\n".join(["all found." if not missed else "not found:", *missed]))
    sys.exit(1 if missed else 0)


def kind_of(run: Path, file: Path) -> str:
    """The kind of a file: its step, and its array or name."""
    parts = file.relative_to(run).parts
    return "/".join(part for part in parts if not part[0].isdigit() and part != "c" and ".png" not in part)


if __name__ == "__main__":
    main()
