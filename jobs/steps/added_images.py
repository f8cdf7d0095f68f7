"""Trainings and images that were added to the manifest after they began.

A finished training stays: its network is what it was, and what was made with it stays valid. A training that is not
finished is refused, because it would go on in another order and on other images than it began with.
"""

from collections.abc import Mapping
from typing import Any

from cluster.words import plural
from jobs.run.directory import Run
from jobs.run.steps import BY_NAME
from jobs.run.training_record import read_complete
from storage.steps import ADDED, Step, num_added

LENGTH = "raised_epochs"  # of a fingerprint: follows from the number of images


def as_trained(step: Step, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """The fingerprint that a finished training must have: this launch's, on the images that there were then.

    Args:
        fingerprint: of this launch; it is returned where the training is not finished or no image was added since.

    Raises:
        ValueError: images were added since the training began, and it is not finished.
    """
    recorded = step.fingerprint()
    if recorded is None or num_added(recorded) >= num_added(fingerprint):
        return dict(fingerprint)
    if read_complete(step.data()) is None:
        raise ValueError(
            f"{step.location}: images were added to the manifest since this training began, and it is not finished. "
            f"Begin again with --restart {step.location.name}, or use another run."
        )
    then = {key: value for key, value in fingerprint.items() if key not in (ADDED, LENGTH)}
    if number := num_added(recorded):
        then[ADDED] = fingerprint[ADDED][:number]
    return then | ({LENGTH: recorded[LENGTH]} if LENGTH in recorded else {})


def num_unseen(run: Run, name: str) -> int:
    """The images that were added to the manifest since a training began; 0 where it never did."""
    fingerprint, additions = run.step(name).fingerprint(), run.manifest().additions
    if fingerprint is None or num_added(fingerprint) >= len(additions):
        return 0
    return run.manifest().num_images - additions[num_added(fingerprint)]


def added_in_words(run: Run, name: str) -> str:
    """Says that images were added since a finished training, and how to train on them; "" where none was."""
    number = num_unseen(run, name)
    if not number:
        return ""
    return (
        f"trained before {plural(number, 'image')} {'was' if number == 1 else 'were'} added; its results stay valid. "
        f"To train on all images: '{BY_NAME[name].script}.py --restart {name}'"
    )
