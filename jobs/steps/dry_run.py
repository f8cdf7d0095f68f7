"""`--dry-run`: prints what a launch would do, where, how long, and how many bytes it would store.

A dry run starts and writes nothing. It makes the same checks as a launch and is refused with the same messages. The
dry run of a unit step is in `jobs.steps.unit_dry_run`.
"""

from cluster.words import plural
from jobs.steps.progress import size
from storage.location import Location

NOTHING = "nothing was started, nothing was written."


def print_other_job(name: str, what: str, place: Location, where: str = "in this process") -> None:
    """Prints what a job that writes one file would do.

    Args:
        what: what the job would do, in words.
        place: where the file would be.
        where: where the work would run, in words.
    """
    print(f"{name}, dry run: {what}.\n  on:      {where}\n  result:  {place}\n  {NOTHING}")


def print_deletion(place: Location) -> None:
    objects, num_bytes = place.usage()
    print(f"  first:   deletes {plural(objects, 'object')}, {size(num_bytes)}, in {place}")
