"""The segmentation network's training step with its losses, its optimiser and its learning rates.

It is DSRG (Huang et al., CVPR 2018) as used in FickleNet (Lee et al., CVPR 2019, sections 3.4 and 4.1). The CRF refines
the prediction, and the refined prediction grows the seeds. The network is trained on the grown seeds, on boundaries,
and on masks of images that have one. No loop, no workers, no checkpoints.

Shape legend: B images, L labels (background and classes), H W pixels of the network input, h w the backbone's grid.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ficklenet.arguments import require_images, require_one_per_image, require_tensor
from ficklenet.classifier_losses import average_over_images
from ficklenet.classifier_training import set_learning_rate, step_in_micro_batches
from ficklenet.crf import AT_MAP_SIZE, CrfParameters, Energy
from ficklenet.geometry import GridGeometry
from ficklenet.growing import grow_seeds
from ficklenet.segmentation_losses import boundary_loss, full_loss, is_known, label_probabilities, seed_loss
from ficklenet.segmenter import FC_HEADS, Segmenter, SegmenterSpec
from ficklenet.stages import stage_factors
from ficklenet.training_crf import CrfMethod, Map, refine_batch
from ficklenet.transforms import normalize

NEW_FACTOR = 10.0  # factor of the learning rate of layers that start from random weights
BIAS_FACTOR = 2.0
MOMENTUM = 0.9
DECAY = 0.33  # factor of the learning rate between stages of the schedule
NUM_STAGES = 8  # every 1,000 of 8,000 iterations in DSRG
POLY_POWER = 0.9  # as in DSRG's retraining and in DeepLab

Schedule = Literal["steps", "poly"]


class SegmentationBatch(NamedTuple):
    """Whole images, resized to the network's input, with their seeds, labels and masks.

    Attributes:
        images: uint8 RGB (B, 3, H, W).
        seeds: integer (B, h, w): 0 background, class number + 1, any other value unknown.
        present: bool (B, L): the labels that may grow, which are the image's classes and the background.
        truth: integer (B, h, w) like the seeds; all unknown if the image has no mask or the mask may not be read.
        weights: float (B,); 0 leaves an unreadable image out.
        features: float (B, K, H', W'): the output of the frozen backbone for these images; None: not computed yet.
    """

    images: Tensor
    seeds: Tensor
    present: Tensor
    truth: Tensor
    weights: Tensor
    features: Tensor | None = None

    def to(self, device: torch.device) -> "SegmentationBatch":
        """The same batch on a device."""
        return self._each(lambda values: values.to(device, non_blocking=True))

    def micro_batch(self, chosen: slice) -> "SegmentationBatch":
        """Some of the batch's images."""
        return self._each(lambda values: values[chosen])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "SegmentationBatch":
        features = None if self.features is None else change(self.features)
        images, seeds, present, truth, weights = map(change, self[:5])
        return SegmentationBatch(images, seeds, present, truth, weights, features)


@dataclass(frozen=True)
class LossWeights:
    """The weight of each loss. If seed and boundary are 0 (full supervision), the CRF and growing do not run.

    Attributes:
        full: alpha, for images with masks; the other two losses apply to them too.
    """

    seed: float = 1.0
    boundary: float = 1.0
    full: float = 2.0

    @property
    def uses_crf(self) -> bool:
        return self.seed > 0 or self.boundary > 0


def segmentation_loss(
    model: nn.Module,
    batch: SegmentationBatch,
    loss_weights: LossWeights,
    total_weight: float | None = None,
    *,
    precision: torch.dtype = torch.float32,
    crf_energy: Energy = "log",
    crf_method: CrfMethod = "auto",
    map_images: Map = map,
) -> dict[str, Tensor]:
    """The losses of one batch; dropout draws from torch's global generator.

    Args:
        model: a ``Segmenter``, or one wrapped for distributed training.
        batch: on the model's device.
        loss_weights: the weight of each loss.
        total_weight: as in ``ficklenet.classifier_losses.average_over_images``.
        precision: the precision of the network; everything after its logits is float32.
        crf_energy: the unary energy of the CRF. With "linear" the CRF follows the image's edges more, because -P lies
            in [-1, 0].
        crf_method, map_images: as in ``ficklenet.training_crf.refine_batch``.

    Returns:
        Scalars: "loss" with its graph, and its unweighted parts "seed", "boundary" and "full" without a graph.

    Raises:
        ValueError: the images are not uint8, or another tensor has another type or shape than ``SegmentationBatch``
            says.
    """
    _require_batch(batch, "segmentation_loss")

    # 1. Predict
    probabilities_BLhw = _predict(model, batch, precision)
    nothing_B = probabilities_BLhw.new_zeros(len(batch.images))
    parts = {"seed": nothing_B, "boundary": nothing_B, "full": full_loss(probabilities_BLhw, batch.truth)}

    # 2. Refine the prediction and grow the original seeds; no gradient flows into either
    if loss_weights.uses_crf:
        geometry = _geometry(model)
        refined_BLhw = refine_batch(
            probabilities_BLhw.detach(),
            geometry.at_cells(batch.images),
            crf_parameters(geometry, crf_energy),
            method=crf_method,
            map_images=map_images,
        )
        grown_Bhw = grow_seeds(batch.seeds, refined_BLhw, batch.present)

        # 3. Compute the losses
        parts["seed"] = seed_loss(probabilities_BLhw, grown_Bhw)
        parts["boundary"] = boundary_loss(probabilities_BLhw, refined_BLhw)
    averages = {name: average_over_images(loss_B, batch.weights, total_weight) for name, loss_B in parts.items()}
    loss = sum(getattr(loss_weights, name) * average for name, average in averages.items())
    return {"loss": torch.as_tensor(loss)} | {name: average.detach() for name, average in averages.items()}


def segmentation_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: SegmentationBatch,
    loss_weights: LossWeights,
    *,
    total_weight: float | None = None,
    micro_batch_size: int = 0,
    precision: torch.dtype = torch.float32,
    crf_energy: Energy = "log",
    map_images: Map = map,
) -> Tensor:
    """Makes one step of the optimiser on one batch and returns its scalar loss, detached.

    Args:
        model, batch, loss_weights, precision, crf_energy, map_images: as in ``segmentation_loss``.
        total_weight, micro_batch_size: as in ``ficklenet.classifier_training.step_in_micro_batches``.

    Raises:
        ValueError: as in ``segmentation_loss``.
    """
    _require_batch(batch, "segmentation_step")

    def loss_of(chosen: slice, total: float) -> Tensor:
        part = batch.micro_batch(chosen)
        settings: dict[str, Any] = {"precision": precision, "crf_energy": crf_energy, "map_images": map_images}
        return segmentation_loss(model, part, loss_weights, total, **settings)["loss"]

    return step_in_micro_batches(
        model, optimizer, loss_of, batch.weights, total_weight=total_weight, micro_batch_size=micro_batch_size
    )


@torch.no_grad()
def relabelled_batch(
    teacher: nn.Module,
    batch: SegmentationBatch,
    *,
    uses_features: bool = False,
    micro_batch_size: int = 0,
    precision: torch.dtype = torch.float32,
    map_images: Map = map,
) -> SegmentationBatch:
    """The batch in which images without a mask get another network's labels as truth: DSRG's retraining (Huang et al.,
    CVPR 2018, section 4.1).

    Args:
        teacher: the other network, in evaluation mode, on the batch's device. The CRF refines its probabilities, and
            the most probable of an image's labels becomes the truth.
        uses_features: the batch's features, if there are any, are those of the teacher's backbone too.
        micro_batch_size: images in one pass of the teacher; 0: all.
        precision, map_images: as in ``segmentation_loss``.

    Raises:
        ValueError: as in ``segmentation_loss``.
    """
    _require_batch(batch, "relabelled_batch")
    truths, geometry = [], _geometry(teacher)
    for start in range(0, len(batch.images), micro_batch_size or len(batch.images)):
        part = batch.micro_batch(slice(start, start + (micro_batch_size or len(batch.images))))
        part = part if uses_features else part._replace(features=None)
        probabilities_BLhw = _predict(teacher, part, precision)
        refined_BLhw = refine_batch(
            probabilities_BLhw, geometry.at_cells(part.images), crf_parameters(geometry), map_images=map_images
        )
        label_Bhw = refined_BLhw.masked_fill(~part.present[:, :, None, None], -1.0).argmax(1)
        has_mask_B11 = is_known(part.truth, refined_BLhw.shape[1]).flatten(1).any(1)[:, None, None]
        truths.append(torch.where(has_mask_B11, part.truth, label_Bhw))
    return batch._replace(truth=torch.cat(truths))


def _require_batch(batch: SegmentationBatch, asked_by: str) -> None:
    """Refuses a batch that is not of uint8 images with one entry each; the losses check the labels' grid."""
    require_images(batch.images, asked_by, name="images")
    num_images = len(batch.images)
    require_tensor(batch.seeds, "integers", (num_images, "h", "w"), asked_by, "seeds")
    require_tensor(batch.truth, "integers", (num_images, "h", "w"), asked_by, "truth")
    require_tensor(batch.present, "booleans", (num_images, "L"), asked_by, "present")
    require_one_per_image(num_images, asked_by, weights=batch.weights)


def _predict(model: nn.Module, batch: SegmentationBatch, precision: torch.dtype) -> Tensor:
    """Label probabilities, float32 (B, L, h, w), of a batch's images, or of their features if these are known."""
    with torch.autocast(batch.images.device.type, precision, enabled=precision != torch.float32):
        if batch.features is None:
            logits_BLhw = model(normalize(batch.images).contiguous(memory_format=torch.channels_last))
        else:
            logits_BLhw = model(batch.images, batch.features)
    return label_probabilities(logits_BLhw)


def crf_parameters(geometry: GridGeometry, energy: Energy = "log") -> CrfParameters:
    """The CRF's parameters at map size; their distances are as many pixels as those of DSRG at stride 8."""
    ratio = 8 / geometry.stride
    return replace(
        AT_MAP_SIZE,
        bilateral_distance=ratio * AT_MAP_SIZE.bilateral_distance,
        gaussian_distance=ratio * AT_MAP_SIZE.gaussian_distance,
        energy=energy,
    )


def _geometry(model: nn.Module) -> GridGeometry:
    """The geometry of the logits of a ``Segmenter``, wrapped for distributed training or not."""
    inner = getattr(model, "module", model)
    spec = getattr(inner, "spec", None)
    if not isinstance(spec, SegmenterSpec):
        raise TypeError(f"training: a {type(inner).__name__} without a SegmenterSpec given; give a Segmenter.")
    return spec.geometry


def make_optimizer(
    model: Segmenter, *, learning_rate: float, weight_decay: float = 5e-4, layer_decay: float = 1.0
) -> torch.optim.SGD:
    """SGD for the weights that are trained: new layers at 10 times the rate, biases at twice the rate without decay.

    Args:
        layer_decay: each stage of the backbone learns at this times the rate of the stage behind it.

    Raises:
        ValueError: the decay is not more than 0 and at most 1.
    """
    stages = model.backbone.stage_weights()
    factors = dict.fromkeys(map(id, model.parameters()), 1.0)
    for stage, factor in zip(stages, stage_factors(len(stages), layer_decay), strict=True):
        factors |= dict.fromkeys(map(id, stage), factor)
    factors |= dict.fromkeys(map(id, model.head.new_layers().parameters()), NEW_FACTOR)
    groups = [
        {
            "params": [
                weight
                for name, weight in model.named_parameters()
                if weight.requires_grad and (factors[id(weight)], name.endswith("bias")) == (factor, is_bias)
            ],
            "factor": factor * (BIAS_FACTOR if is_bias else 1.0),
            "weight_decay": 0.0 if is_bias else weight_decay,
        }
        for factor in sorted(set(factors.values()))
        for is_bias in (False, True)
    ]
    optimizer = torch.optim.SGD(groups, lr=learning_rate, momentum=MOMENTUM)
    set_learning_rate(optimizer, learning_rate)
    return optimizer


def default_learning_rate(backbone: str, schedule: Schedule) -> float:
    """The backbone's learning rate at the start: that of DSRG for VGG-16, that of DeepLab for deeper networks."""
    if backbone not in FC_HEADS:
        return 2.5e-4
    return 5e-4 if schedule == "steps" else 1e-3


def learning_rate_at(step: int, num_steps: int, base: float, schedule: Schedule = "steps") -> float:
    """The learning rate of a step.

    Args:
        step: the step, from 0.
        num_steps: the steps of the whole training.
        base: the rate at the start.
        schedule: "steps": multiplied by 0.33 after each eighth of the training, as in DSRG's training on seeds; "poly":
            ``base * (1 - step / num_steps) ** 0.9``, as in DSRG's retraining and in DeepLab's training on masks.
    """
    if schedule == "poly":
        return base * (1 - step / num_steps) ** POLY_POWER
    return base * DECAY ** (NUM_STAGES * step // num_steps)
