"""What a launch prints while nothing has come back from its workers: what they need, and what the cluster has."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster.connect import Connection, resources_if_running
from cluster.words import plural
from jobs.steps.machine_load import busy_in_words
from jobs.steps.progress import duration

FIRST_SECONDS = 30.0
"""The time without a result after which a launch says what it waits for."""

LONGEST_SECONDS = 600.0
"""The longest time between two such sentences; each time is twice as long as the one before."""


@contextmanager
def notices(
    missing: str, needs: str, cpus: float, gpus: float, *, come: str = "", needs_ray: bool = False
) -> Iterator[Callable[[], None]]:
    """Prints again and again what the launch waits for, until the block ends or the yielded function is called.

    Args:
        missing: what has not come back yet, such as "no unit is finished".
        needs: who needs CPUs and GPUs, such as "a worker needs".
        cpus, gpus: how many the cluster must have for the first result.
        needs_ray: the work cannot be done without Ray, so no sentence advises that.
        come: printed by the yielded function if a sentence was printed before, such as "the workers have started".
    """
    has_come, has_ended, began = threading.Event(), False, time.monotonic()

    def print_on() -> None:
        pause, has_printed = FIRST_SECONDS, False
        while not has_come.wait(pause):
            pause, has_printed = min(2 * pause, LONGEST_SECONDS), True
            reason = waiting_for(needs, cpus, gpus, resources_if_running(), needs_ray=needs_ray)
            print(f"{missing} after {duration(time.monotonic() - began)}: {reason}", flush=True)
        if come and has_printed and not has_ended:
            print(f"{come} after {duration(time.monotonic() - began)}.", flush=True)

    thread = threading.Thread(target=print_on, name="notices", daemon=True)
    thread.start()
    try:
        yield has_come.set
    finally:
        has_ended = not has_come.is_set()
        has_come.set()
        thread.join(timeout=1.0)


WITHOUT_RAY = "You can stop the command and give --set cluster.address=in-process, which works without Ray."


def waiting_for(needs: str, cpus: float, gpus: float, there: Connection | None, *, needs_ray: bool = False) -> str:
    """Why nothing has come back yet, in a sentence; a second one if other programs use this machine.

    Work without Ray is advised only where it is possible and this command has started the Ray itself: a job that was
    submitted to a cluster would then compute on the cluster's head. It helps where Ray's processes come slowly, which
    is a busy machine without GPUs; elsewhere one process would be slower than several.

    Args:
        there: what the cluster has now; None if a Ray of this command is still starting.
        needs_ray: the work cannot be done without Ray.
    """
    busy = f" {sentence}" if (sentence := busy_in_words()) else ""
    is_own, has_gpus = there is None or there.is_own, there is not None and there.num_gpus > 0
    without = f" {WITHOUT_RAY}" if busy and is_own and not (needs_ray or has_gpus or gpus) else ""
    if there is None:
        return f"Ray is still starting.{busy}{without}"
    has = f"{plural(round(there.num_cpus), 'CPU')} and {plural(round(there.num_gpus), 'GPU')}"
    if there.num_gpus < gpus or there.num_cpus < cpus:
        what = f"{cpus:g} CPU{'' if cpus == 1 else 's'}"
        if gpus:
            what = plural(round(gpus), "GPU") + (f" and {what}" if there.num_cpus < cpus else "")
        return f"{needs} {what}, the cluster has {has} now. The launch waits for nodes, without a time limit."
    return f"workers are starting, or this takes longer (the cluster has {has}).{busy}{without}"
