"""The configuration of a run: typed, frozen, from TOML plus `--set section.key=value`.

A run has one configuration, kept in `run.json`. A launch starts from it, lays the given TOML file and then the
`--set` values over it, and records the result once the step has accepted it. Unknown keys are refused.
"""

import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
DropRate = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1)]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]
Names = Annotated[tuple[str, ...], BeforeValidator(lambda given: given.split(",") if isinstance(given, str) else given)]


def _parse_numbers(given: Any) -> Any:
    """'6,12' as ['6', '12'], and one number as a list of it."""
    return given.split(",") if isinstance(given, str) else [given] if isinstance(given, int | float) else given


Counts = Annotated[tuple[Count, ...], BeforeValidator(_parse_numbers), Field(min_length=1)]
Scale = Annotated[float, Field(ge=0.25, le=4)]
Scales = Annotated[tuple[Scale, ...], BeforeValidator(_parse_numbers), Field(min_length=1)]


def _parse_workers(given: Any) -> Any:
    least, dots, most = str(given).partition("..")
    if least.isdigit() and most.isdigit() == bool(dots) and 1 <= int(least) <= int(most or least):
        return given
    raise PydanticCustomError("workers", WORKERS_ALLOWED)


WORKERS_ALLOWED = "a number from 1, or a range of them such as 2..8"
Workers = Annotated[int | str, BeforeValidator(_parse_workers), WithJsonSchema({"allowed": WORKERS_ALLOWED})]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ImagesConfig(Section):
    """How images are read."""

    input_size: Annotated[int, Field(ge=33, le=2049)] = Field(
        321, description="side of the square network input in pixels, 8 g + 1"
    )
    max_pixels: Count = Field(64_000_000, description="larger images are skipped by their header, undecoded")
    max_skipped_fraction: Fraction = Field(
        0.5, description="a step stops when more than this share of its images had to be skipped"
    )
    read_concurrency: Count = Field(8, description="images of one unit fetched at once by a reading task")


class ClassifierConfig(Section):
    """FickleNet, the stochastic classifier, and its training (paper, section 4.1)."""

    backbone: Literal["vgg16", "resnet101", "small"] = Field(
        "vgg16", description="all have output stride 8; small is for drawn images and tests"
    )
    weights: str = Field(
        "imagenet",
        description="'imagenet' (torchvision's registry), 'none', or the path of a state dict (.pt)",
    )
    kernel_size: Annotated[int, Field(ge=1, le=31)] = Field(9, description="s, odd, in feature cells")
    drop_rate: DropRate = Field(0.9, description="p: share of a window's cells dropped; the centre is kept")
    frozen_stages: Annotated[int, Field(ge=0, le=5)] = Field(0, description="backbone stages not trained")
    train_splits: Names = Field((), description="splits trained on; empty: all but val_splits")
    val_splits: Names = Field(("val",), description="splits of the reported average precision")
    validate_every: Count = Field(1, description="epochs from one validation to the next; the last is always validated")
    epochs: Count = Field(20, description="passes over the training images")
    keep: Literal["last", "best"] = Field(
        "last", description="the epoch whose classifier makes the maps: the last, or that of the best validation"
    )
    batch_size: Count = Field(
        10, description="images per step, over all workers together; an epoch leaves out what fills no batch"
    )
    micro_batch_size: Annotated[int, Field(ge=0)] = Field(
        0, description="images a worker has on its device at once, for small memories; 0: its whole share of the batch"
    )
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(1e-3, description="of the head; Adam")
    backbone_learning_rate_factor: Annotated[float, Field(ge=0)] = Field(
        1.0, description="the backbone learns at learning_rate times this"
    )
    halve_every: Count = Field(10, description="epochs after which the learning rate is halved")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="L2 penalty on all weights")
    device: Device = Field("auto", description="auto: cuda where the cluster has GPUs at the start")
    precision: Precision = Field("auto", description="of the backbone; auto: float32 on CPU, bfloat16 on GPU")
    loader_workers: Annotated[int, Field(ge=0)] | None = Field(
        None, description="decoding processes per training worker; unset: 0 on CPU, its share of the CPUs on GPU"
    )
    checkpoint_minutes: Annotated[float, Field(ge=0)] = Field(
        5.0, description="from one checkpoint to the next within an epoch: the most work that a lost worker costs"
    )


class MapsConfig(Section):
    """Localisation maps: N stochastic Grad-CAMs an image, folded to maximum and mean."""

    num_samples: Count = Field(200, description="N")
    drop_rate: DropRate | None = Field(None, description="p in inference; unset: the classifier's")
    normalization: Literal["max", "percentile"] = Field(
        "percentile",
        description="a sample's map is divided by its maximum, or by a percentile and clipped to 1",
    )
    percentile: Annotated[float, Field(gt=0, le=100)] = Field(
        90.0, description="which, of a map's values over its cells"
    )
    classes: Literal["labels", "predicted"] = Field(
        "labels", description="map the image's labels, or the classes predicted where it has none"
    )
    max_classes: Count = Field(5, description="most classes predicted for an unlabelled image")
    predicted_threshold: Fraction = Field(0.5, description="sigmoid of the expected logit from which a class counts")
    batch_size: Annotated[int, Field(ge=0)] = Field(0, description="images per backbone pass; 0: 1 on CPU, 32 on GPU")
    device: Device = Field("auto", description="auto: cuda where the cluster has GPUs at the start")
    precision: Precision = Field("auto", description="of the backbone; auto: float32 on CPU, bfloat16 on GPU")


class SeedsConfig(Section):
    """Seeds: labels where the maps are sure, and the background cue."""

    theta: Fraction = Field(0.35, description="a class is seeded where its maximum over the samples is above this")
    background_cue: Literal["saliency", "evidence"] = Field(
        "saliency",
        description="saliency: low saliency where the manifest names a saliency map, else low evidence; evidence: "
        "low evidence for all images",
    )
    saliency_threshold: Fraction = Field(0.06, description="background is less salient than this")
    evidence_threshold: Fraction = Field(0.2, description="background has every class's maximum below this")
    priority: Literal["background", "foreground"] = Field("background", description="which cue holds where both are")


class SegmenterConfig(Section):
    """The segmentation network (DSRG; FickleNet, sections 3.4 and 4.1), trained on the classifier's splits."""

    backbone: Literal["vgg16", "resnet101", "small"] = Field(
        "vgg16", description="all have output stride 8; small is for drawn images and tests"
    )
    weights: str = Field(
        "imagenet",
        description="'imagenet' (torchvision's registry), 'none', 'classifier' (that of this run), or the path of a "
        "state dict (.pt)",
    )
    frozen_stages: Annotated[int, Field(ge=0, le=5)] = Field(0, description="backbone stages not trained")
    dilations: Counts = Field((12,), description="of the head's branches; 12: LargeFOV; 6,12,18,24: ASPP")
    supervision: Literal["seeds", "masks"] = Field(
        "seeds", description="masks: all masks and no seeds, the fully supervised upper bound"
    )
    strong_splits: Names = Field((), description="splits whose masks are learnt beside the seeds (semi-supervised)")
    full_loss_weight: Annotated[float, Field(ge=0)] = Field(2.0, description="alpha, of the loss on these masks")
    epochs: Count = Field(15, description="8,000 steps on VOC's 10,582 images; more for smaller sets")
    batch_size: Count = Field(
        20, description="images per step, over all workers together; an epoch leaves out what fills no batch"
    )
    micro_batch_size: Annotated[int, Field(ge=0)] = Field(
        0, description="images at once on a device, their gradients summed; 0: a worker's whole share of a batch"
    )
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        5e-4,
        description="of the backbone, 0.33 times less from each eighth of the training to the next; head: times 10",
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(5e-4, description="L2 penalty on weights, not on biases")
    checkpoint_minutes: Annotated[float, Field(ge=0)] = Field(10.0, description="most time lost when a worker is lost")
    device: Device = Field("auto", description="auto: cuda where the cluster has GPUs at the start")
    precision: Precision = Field("auto", description="of the network; auto: float32 on CPU, bfloat16 on GPU")
    loader_workers: Annotated[int, Field(ge=0)] | None = Field(
        None, description="decoding processes per training worker; unset: its share of the CPUs on GPU, none on CPU"
    )


class PredictionsConfig(Section):
    """Masks predicted by the segmentation network."""

    splits: Names = Field((), description="splits predicted; empty: classifier.val_splits")
    network: Literal["segmenter", "retrained"] = Field(
        "segmenter", description="which network predicts: the first, or the one retrained on its predictions"
    )
    scales: Scales = Field((1.0,), description="of the network's input; several are averaged: 0.75,1,1.25")
    mirror: bool = Field(False, description="average over mirror images too")
    refine: bool = Field(True, description="by the dense CRF")
    max_side: Count = Field(1024, description="longer images are labelled at this size and their labels enlarged")
    device: Device = Field("auto", description="auto: cuda where the cluster has GPUs at the start")
    precision: Precision = Field("auto", description="of the network; auto: float32 on CPU, bfloat16 on GPU")


class PseudoLabelsConfig(Section):
    """Pseudo-labels: densified seeds at image size."""

    refine: bool = Field(True, description="by the dense CRF")
    background_exponent: Annotated[float, Field(gt=0)] = Field(
        1.0, description="without saliency the background's evidence is (1 - highest maximum) to this power"
    )
    max_side: Count = Field(1024, description="longer images are labelled at this size and their labels enlarged")


class ClusterConfig(Section):
    """Where work runs. None of these changes a result, so none is part of a fingerprint."""

    address: str = Field(
        "",
        description="'': the cluster around this job or of RAY_ADDRESS, else an own local Ray; 'auto' or HOST:PORT: "
        "that cluster; 'local': always an own Ray; 'in-process': no Ray, for a debugger",
    )
    cpus: Annotated[int, Field(ge=0)] = Field(0, description="CPUs an own Ray declares; 0: those of the machine")
    autoscaling: bool = Field(False, description="the cluster grows on demand, so asking for more than it has is right")
    min_actors: Annotated[int, Field(ge=0)] = Field(
        0, description="computing actors at least; 0: max_actors, but 1 where autoscaling"
    )
    max_actors: Annotated[int, Field(ge=0)] = Field(0, description="at most; 0: one per GPU, without GPUs one per CPU")
    training_workers: Workers = Field(
        1,
        description="processes that train together, one GPU each where there are GPUs; '2..8': as many of these as the "
        "cluster has room for, followed as nodes come and go",
    )
    cpus_per_training_worker: Count = Field(1, description="CPUs, and threads, of each of them")


def training_worker_range(config: ClusterConfig) -> tuple[int, int]:
    """The least and the most processes that train together; equal where their number is fixed."""
    least, _, most = str(config.training_workers).partition("..")
    return int(least), int(most or least)


class Config(Section):
    """Everything a run can be told."""

    seed: Annotated[int, Field(ge=0)] = Field(0, description="of training order, augmentation and every mask")
    unit_size: Count = Field(64, description="images per unit: the quantum of work, storage and resume")
    images: ImagesConfig = ImagesConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    maps: MapsConfig = MapsConfig()
    seeds: SeedsConfig = SeedsConfig()
    pseudo_labels: PseudoLabelsConfig = PseudoLabelsConfig()
    segmenter: SegmenterConfig = SegmenterConfig()
    predictions: PredictionsConfig = PredictionsConfig()
    cluster: ClusterConfig = ClusterConfig()

    @property
    def predicted_splits(self) -> tuple[str, ...]:
        """The splits whose masks are predicted: as configured, else the validation splits."""
        return self.predictions.splits or self.classifier.val_splits


def resolve_config(recorded: dict[str, Any], config_file: str | None, assignments: Sequence[str]) -> Config:
    """Lays a TOML file and `a.b=c` assignments over the run's recorded configuration.

    Args:
        recorded: the configuration in `run.json`, {} for a new run.
        config_file: path of a TOML file, or None.
        assignments: "section.key=value"; the value is read as TOML, else taken as text.

    Raises:
        ValueError: one sentence: what was given, what is allowed.
    """
    values = recorded
    if config_file is not None:
        values = _merged(values, _read_toml(config_file))
    for assignment in assignments:
        values = _merged(values, _parse_assignment(assignment))
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ValueError(_sentence(error)) from None
    if config.classifier.kernel_size % 2 == 0:
        raise ValueError(f"classifier.kernel_size: given {config.classifier.kernel_size}, allowed: odd numbers.")
    for name, section in (("classifier", config.classifier), ("segmenter", config.segmenter)):
        if section.frozen_stages and section.weights == "none":
            raise ValueError(
                f"{name}.frozen_stages: given {section.frozen_stages} with {name}.weights=none, "
                "which would leave random weights as they are; give 0, or weights."
            )
    if config.segmenter.weights == "classifier" and config.segmenter.backbone != config.classifier.backbone:
        raise ValueError(
            f"segmenter.weights: given 'classifier', allowed: where both have one backbone, but segmenter.backbone is "
            f"{config.segmenter.backbone} and classifier.backbone {config.classifier.backbone}; give other weights."
        )
    if config.images.input_size % 8 != 1:
        raise ValueError(f"images.input_size: given {config.images.input_size}, allowed: 8 g + 1, such as 321.")
    return config


def config_keys() -> list[str]:
    """All keys, dotted: 'seed', 'maps.num_samples', ..."""
    keys = []
    for name, field in Config.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            keys += [f"{name}.{key}" for key in section.model_fields]
        else:
            keys.append(name)
    return keys


def _read_toml(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"--config {path}: no such file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path}: not a TOML file ({error}).") from None


def _parse_assignment(assignment: str) -> dict[str, Any]:
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set {assignment}: write section.key=value, for example --set maps.num_samples=100.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # plain words need no quotes
    nested: Any = value
    for part in reversed(key.strip().split(".")):
        nested = {part: nested}
    return nested


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        is_section = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if is_section else value
    return merged


def allowed_values(schema: dict[str, Any]) -> str:
    """What a key may be set to, by its JSON schema: "whole numbers from 1", "numbers from 0 to below 1"."""
    if "allowed" in schema:
        return schema["allowed"]
    if "anyOf" in schema:
        return " or ".join(allowed_values(each) for each in schema["anyOf"] if each.get("type") != "null")
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    match schema["type"]:
        case "boolean":
            return "`true`, `false`"
        case "string":
            return "text"
        case "array":
            return f"a list of {allowed_values(schema['items'])}"
        case kind:
            return f"{'whole numbers' if kind == 'integer' else 'numbers'}{_bounds(schema)}"


def _bounds(schema: dict[str, Any]) -> str:
    lower = {"minimum": "from", "exclusiveMinimum": "above"}
    upper = {"maximum": "up to", "exclusiveMaximum": "below"}
    if any(bound in schema for bound in lower):
        upper = {"maximum": "to", "exclusiveMaximum": "to below"}
    return "".join(f" {word} {schema[bound]:g}" for bound, word in (lower | upper).items() if bound in schema)


_NUMBER_FAULTS = {
    *("int_parsing", "int_from_float", "int_type", "float_parsing", "float_type", "finite_number"),
    *("greater_than_equal", "greater_than", "less_than_equal", "less_than"),
}

# What is allowed, by pydantic's name of the fault; of others pydantic's own words are taken.
_ALLOWED = {
    **dict.fromkeys(("bool_parsing", "bool_type"), "true or false"),
    "string_type": "text",
    "tuple_type": "a list, separated by commas",
    "too_short": "a list of one or more",
    "model_type": "a section of keys; set one of them, as in maps.num_samples=100",
}


def _sentence(error: ValidationError) -> str:
    """The first fault as one sentence."""
    fault = error.errors()[0]
    # Unions and tuples add their own parts to the path: keep those that are names of keys.
    key = ".".join(str(part) for part in fault["loc"][:2] if isinstance(part, str))
    if fault["type"] == "extra_forbidden":
        section = key.partition(".")[0]
        near = difflib.get_close_matches(key, [*config_keys(), *Config.model_fields], n=1, cutoff=0.6)
        known = [name for name in config_keys() if name.startswith(f"{section}.")] or list(Config.model_fields)
        return f"{key}: unknown key. " + (f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}.")
    if fault["type"] in _NUMBER_FAULTS:
        finite = "finite " if fault["type"] == "finite_number" else ""
        allowed = finite + allowed_values(_schema_of(key))
    elif fault["type"] in _ALLOWED:
        allowed = _ALLOWED[fault["type"]]
    else:
        allowed = fault["msg"].removeprefix("Input should be ")
    return f"{key}: given {fault['input']!r}, allowed: {allowed}."


def _schema_of(key: str) -> dict[str, Any]:
    schema = Config.model_json_schema()
    section, _, name = key.partition(".")
    found = schema["properties"][section]
    return schema["$defs"][found["$ref"].rsplit("/", 1)[1]]["properties"][name] if name else found
