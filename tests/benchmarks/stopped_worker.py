"""What a stopped worker costs: the same units on 4 workers, undisturbed and with one of them stopped (SIGSTOP).

    python tests/benchmarks/stopped_worker.py

The units sleep, so the figure holds on a busy machine too: it is the time until the worker is found and replaced, and
the units that it kept. Goal: at most 1.3 times the undisturbed job, and the worker named within 60 s.
"""

import os
import signal
import tempfile
import time
from functools import partial
from pathlib import Path

from machine import describe

from cluster.connect import connect, resources
from cluster.fanout import LateUnit, Payload, Pool, Stages, fan_out

NUM_UNITS, SECONDS, WORKERS = 120, 4.0, 4


def compute(mark: Path | None, payload: Payload) -> Payload:
    """Sleeps; the first worker that comes to unit 20 stops itself."""
    if mark is not None and payload["unit"] == 20 and not mark.exists():
        mark.write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(SECONDS)
    return payload


def make(mark: Path | None) -> partial[Payload]:
    return partial(compute, mark)


def seconds(mark: Path | None, named: list[float]) -> float:
    def on_late(late: LateUnit) -> None:
        named.append(time.time())
        print(f"unit {late.unit['unit']} is late, {late}", flush=True)

    units = [{"unit": number} for number in range(NUM_UNITS)]
    stages = Stages(partial(make, mark), None, None)
    receipts = fan_out(units, stages, Pool(WORKERS, WORKERS, 1.0, write_cpus=0.25, read_cpus=0.25), on_late=on_late)
    next(receipts)  # so that the start of the workers counts for neither
    started = time.monotonic()
    assert len([*receipts]) == NUM_UNITS - 1
    return time.monotonic() - started


def main() -> None:
    print(describe("ray"))
    with tempfile.TemporaryDirectory() as folder, connect("local", num_cpus=WORKERS + 1):
        resources()
        mark, named = Path(folder) / "stopped", list[float]()
        plain, disturbed = seconds(None, []), seconds(mark, named)
        seconds_to_name = named[0] - float(mark.read_text())
        print(
            f"{NUM_UNITS} units of {SECONDS:g} s on {WORKERS} workers: {plain:.0f} s undisturbed, {disturbed:.0f} s "
            f"with a stopped worker: {disturbed / plain:.2f} times; named after {seconds_to_name:.0f} s"
        )


if __name__ == "__main__":
    main()
