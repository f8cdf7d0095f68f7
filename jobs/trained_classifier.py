"""The classifier that a finished training left in a run."""

import json
from dataclasses import dataclass

from ficklenet.classifier import ClassifierSpec, FickleNet, unpack_classifier
from jobs.kept_model import kept_bytes
from jobs.run import Run
from storage.errors import NotYet


@dataclass(frozen=True)
class TrainedClassifier:
    """The record of a finished training, `complete.json`."""

    spec: ClassifierSpec
    sha256: str
    metrics: dict[str, float]


def require_classifier(run: Run, class_names: tuple[str, ...]) -> TrainedClassifier:
    """The finished training of a run.

    Raises:
        NotYet: there is none.
        ValueError: it was trained for another class list or size.
    """
    folder = run.location / "classifier"
    if not (folder / "complete.json").exists():
        command = run.command("train_ficklenet")
        raise NotYet(f"{run.uri} has no trained classifier. Run '{command}' first.")
    classifier, sha256 = load_classifier(run)
    if classifier.spec.class_names != class_names:
        raise ValueError(
            f"{folder}: the classifier knows {list(classifier.spec.class_names)}, the manifest {list(class_names)}. "
            "Train it for this class list in another run, or with --restart classifier."
        )
    asked, trained = run.config.images.input_size, classifier.spec.input_size
    if asked != trained:
        raise ValueError(
            f"images.input_size: given {asked}, allowed: {trained}, which this run's classifier was trained with. "
            "Use another run for another size."
        )
    record = json.loads((folder / "complete.json").read_bytes())
    return TrainedClassifier(classifier.spec, sha256, record["metrics"])


def load_classifier(run: Run) -> tuple[FickleNet, str]:
    """The run's classifier, on CPU, and the sha256 of its file.

    Raises:
        ValueError: the file is not the one the training finished with.
    """
    data, sha256 = kept_bytes(run.location / "classifier")
    return unpack_classifier(data), sha256
