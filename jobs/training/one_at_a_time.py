"""One launch at a time trains a step. Unit steps share their units between launches; a training cannot be shared."""

import time
from datetime import UTC, datetime

from storage.heartbeat import STALE_AFTER, Heartbeat, living_launches
from storage.location import Location

POLL_SECONDS = 5.0  # between two looks at the heartbeats of the other launch


def wait_until_idle(step: Location, name: str) -> None:
    """Waits while another launch trains this step, and prints which one.

    Two launches that begin at the same moment may both train. They write the same network, so only time is lost.

    Args:
        step: the step's folder.
        name: its name for people.
    """
    announced = ""
    while others := living_launches(step):
        if others[0].name != announced:
            print(f"{name}: {waits_for(others[0])}", flush=True)
            announced = others[0].name
        time.sleep(POLL_SECONDS)


def waits_for(other: Heartbeat) -> str:
    """Which launch trains, and what this launch does meanwhile, in two sentences."""
    since = datetime.fromtimestamp(other.started, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        f"process {other.pid} on host {other.host} already trains this step, since {since}. This launch waits until "
        f"that process ends (if it was killed, up to {STALE_AFTER:.0f} s); to do something else, stop this launch with "
        "Ctrl-C."
    )
