"""The trained networks of a run: the classifier, the segmenter, the retrained segmenter."""

from dataclasses import dataclass
from typing import Any

from ficklenet.classifier import ClassifierSpec, FickleNet, unpack_classifier
from ficklenet.segmenter import Segmenter, SegmenterSpec, unpack_segmenter
from jobs.run.directory import Run
from jobs.run.origin import only_masks
from jobs.run.training_record import kept_bytes, read_complete
from storage.errors import NotYet


@dataclass(frozen=True)
class TrainedNetwork:
    """The record of a finished training, `complete.json`; the weights are not read.

    Attributes:
        spec: the specification from which the network is built.
        sha256: the hash of its file.
        metrics: the metrics of the epoch that was kept.
    """

    spec: ClassifierSpec | SegmenterSpec
    sha256: str
    metrics: dict[str, Any]


def require_network(run: Run, name: str, asked_by: str) -> TrainedNetwork:
    """A finished training of a run.

    Args:
        name: the step: "classifier", "segmenter" or "retrained".
        asked_by: the name of the job that needs the network, for the message.

    Raises:
        NotYet: the training is not finished.
        ValueError: the network was trained for another class list, or the classifier for another input size.
    """
    folder, class_names = run.step(name).data(), run.manifest().class_names
    complete = read_complete(folder)
    what = "classifier" if name == "classifier" else "segmentation network"
    if complete is None:
        if sentence := only_masks(run):
            raise NotYet(f"{asked_by}: {sentence}")
        is_far = name != "classifier" and run.config.segmenter.supervision == "seeds" and not _is_started(run, "seeds")
        command = run.command("run_pipeline") if is_far else run.step_command(name)  # several steps are missing
        raise NotYet(f"{asked_by}: {folder} has no trained {what}. Run '{command}' first.")
    build = ClassifierSpec if name == "classifier" else SegmenterSpec
    spec = build(class_names=tuple(complete["class_names"]), **complete["geometry"])
    if spec.class_names != class_names:
        raise ValueError(
            f"{folder}: the {what} was trained for the classes {list(spec.class_names)}, but the manifest has "
            f"{list(class_names)}. Train it for this class list in another run, or with --restart {name}."
        )
    asked = run.config.images.input_size
    if name == "classifier" and asked != spec.input_size:
        raise ValueError(
            f"images.input_size: given {asked}, allowed: {spec.input_size}, the size that this run's classifier was "
            "trained with. Use another run for another size."
        )
    return TrainedNetwork(spec, complete["sha256"], complete["metrics"])


def _is_started(run: Run, name: str) -> bool:
    return run.step(name).fingerprint() is not None


def require_segmenter(run: Run, name: str, asked_by: str) -> SegmenterSpec:
    """The specification of a finished segmentation network; arguments and errors as in `require_network`."""
    spec = require_network(run, name, asked_by).spec
    assert isinstance(spec, SegmenterSpec)
    return spec


def load_classifier(run: Run) -> FickleNet:
    """The run's classifier, on the CPU.

    Raises:
        ValueError: the file is not the one that the training wrote.
    """
    return unpack_classifier(kept_bytes(run, "classifier")[0])


def load_segmenter(run: Run, name: str = "segmenter") -> Segmenter:
    """A segmentation network of the run, on the CPU; it raises the same errors as `load_classifier`."""
    return unpack_segmenter(kept_bytes(run, name)[0])
