"""Trainings and images that were added to the manifest after they began.

A finished training stays valid, and so do the results that were made with its network. A training that is not
finished is refused, because it would continue with other images, in another order.
"""

from collections.abc import Mapping
from typing import Any

from cluster.words import plural
from jobs.run.directory import Run
from jobs.run.training_record import read_complete
from storage.steps import ADDED, Step, num_added

LENGTH = "raised_epochs"  # the part of a fingerprint that depends on the number of images


def as_trained(step: Step, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """The fingerprint of this launch, as it was when the training began: without the images added since.

    Args:
        fingerprint: of this launch. It is returned unchanged if no image was added since the training began.

    Raises:
        ValueError: images were added since the training began, and it is not finished.
    """
    recorded = step.fingerprint()
    if recorded is None or num_added(recorded) >= num_added(fingerprint):
        return dict(fingerprint)
    _require_finished(step)
    then = {key: value for key, value in fingerprint.items() if key not in (ADDED, LENGTH)}
    if number := num_added(recorded):
        then[ADDED] = fingerprint[ADDED][:number]
    return then | ({LENGTH: recorded[LENGTH]} if LENGTH in recorded else {})


def _require_finished(step: Step) -> None:
    if read_complete(step.data()) is None:
        raise ValueError(
            f"{step.location}: images were added to the manifest since this training began, and it is not finished. "
            f"Begin again with --restart {step.location.name}, or use another run."
        )


def require_no_unseen(run: Run, name: str) -> None:
    """Refuses a training that would continue with other images than it began with, as `as_trained` does.

    Raises:
        ValueError: images were added since the training began, and it is not finished.
    """
    if num_unseen(run, name):
        _require_finished(run.step(name))


def num_unseen(run: Run, name: str) -> int:
    """The number of images that were added to the manifest since a step was last launched; 0 if it never was."""
    fingerprint, additions = run.step(name).fingerprint(), run.manifest().additions
    if fingerprint is None or num_added(fingerprint) >= len(additions):
        return 0
    return run.manifest().num_images - additions[num_added(fingerprint)]


def added_in_words(run: Run, name: str) -> str:
    """Says that images were added since a finished training, and how to train on them; "" if none were added."""
    number = num_unseen(run, name)
    if not number:
        return ""
    return (
        f"trained before {plural(number, 'image')} {'was' if number == 1 else 'were'} added; its results stay valid. "
        f"To train on all images: '{run.step_command(name, '--restart', name)}'"
    )
