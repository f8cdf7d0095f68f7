"""Whether other programs use this machine, which makes work and estimates slower."""

import os

from cluster.words import plural


def busy_in_words() -> str:
    """The load average and the number of CPUs if other programs use this machine, as a sentence; else ''.

    The load average is the mean number of processes of the last minute that computed or waited for a CPU. One more than
    there are CPUs counts as busy, because work of this project fills the CPUs too.
    """
    num_cpus = os.cpu_count() or 1
    try:
        load = os.getloadavg()[0]
    except (OSError, AttributeError):  # not on every system
        return ""
    if load <= num_cpus + 1:
        return ""
    return (
        f"This machine has {plural(num_cpus, 'CPU')} and a load average of {load:.1f}: other programs use it too, so "
        "expect more time."
    )
