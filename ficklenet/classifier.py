"""The FickleNet classifier: a backbone and the stochastic head, and its portable file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ficklenet.arguments import require_class_names, require_tensor
from ficklenet.backbones import backbone_geometry, build_backbone
from ficklenet.geometry import GridGeometry
from ficklenet.head import StochasticHead
from ficklenet.masks import keep_rate, kernel_radius
from ficklenet.model_file import pack_model, unpack_model

FILE_FORMAT = "ficklenet-classifier-1"


@dataclass(frozen=True)
class ClassifierSpec:
    """Everything about a classifier that is not a weight.

    Attributes:
        backbone: a name of ``ficklenet.backbones.build_backbone``.
        class_names: the classes in order; class number = index.
        kernel_size: s of the head, odd.
        drop_rate: p of training and of the expected logit, from 0 (no dropout) to 1.
        input_size: side of the square input in pixels. It must fit the backbone's cells: 8 g + 1 at stride 8.
        output_stride: as in ``build_backbone``.
    """

    backbone: str
    class_names: tuple[str, ...]
    kernel_size: int = 9
    drop_rate: float = 0.9
    input_size: int = 321
    output_stride: int = 8

    def __post_init__(self) -> None:
        self.geometry.require_input_size(self.input_size)
        require_class_names(self.class_names)
        kernel_radius(self.kernel_size)
        keep_rate(self.drop_rate)

    @property
    def geometry(self) -> GridGeometry:
        """Where the cells of the feature grid lie."""
        return backbone_geometry(self.backbone, self.output_stride)

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W) of the feature grid of the square input."""
        side = self.geometry.grid_size(self.input_size)
        return side, side


class FickleNet(nn.Module):
    """A multilabel classifier. Random cells are dropped in each window of its head (FickleNet, section 3)."""

    def __init__(self, spec: ClassifierSpec) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = build_backbone(spec.backbone, spec.output_stride)
        self.head = StochasticHead(self.backbone.out_channels, len(spec.class_names), spec.kernel_size)

    def forward(self, images_BCHW: Tensor, masks_BDV: Tensor) -> Tensor:
        """Logits (B, C) of one stochastic pass over normalised images (B, 3, H, W)."""
        return self.head(self.backbone(images_BCHW), masks_BDV)

    def expected_logits(self, images_BCHW: Tensor) -> Tensor:
        """The expectation of the logits (B, C) over the masks, for validation and for predicted classes."""
        return self.head.expected_logits(self.backbone(images_BCHW), self.spec.drop_rate)


def predicted_classes(logits: Tensor, threshold: float, max_classes: int, num_slots: int) -> Tensor:
    """The most probable classes of each image, ascending.

    Args:
        logits: (B, C) expected logits.
        threshold: the least sigmoid of a predicted class.
        max_classes: the most classes per image.
        num_slots: the width of the result.

    Returns:
        int64 (B, num_slots), -1 in empty slots.

    Raises:
        ValueError: the logits are not floats (B, C).
    """
    require_tensor(logits, "floats", ("B", "C"), "predicted_classes", "logits")
    best = logits.sigmoid().topk(min(max_classes, logits.shape[1]))
    absent = logits.shape[1]  # sorted after all classes
    chosen = torch.where(best.values >= threshold, best.indices, absent).sort(dim=1).values
    slots = torch.full((len(logits), num_slots), absent, device=logits.device)
    slots[:, : chosen.shape[1]] = chosen
    return torch.where(slots == absent, -1, slots)


def pack_classifier(model: FickleNet, about: Mapping[str, Any] | None = None) -> bytes:
    """The classifier as the bytes of a file: a torch archive of plain types and CPU tensors (``weights_only``).

    Args:
        about: the origin of the network, as plain (nested) data, for ``ficklenet.model_file.model_record``.
    """
    return pack_model(FILE_FORMAT, model.spec, model, about)


def unpack_classifier(data: bytes) -> FickleNet:
    """The classifier from such a file, on the CPU and in evaluation mode; it runs no code from the file.

    Raises:
        ValueError: the bytes are not a classifier file, or its weights do not fit its specification.
    """
    try:
        return unpack_model(data, FILE_FORMAT, lambda spec: FickleNet(ClassifierSpec(**spec)))
    except ValueError as error:
        raise ValueError(
            f"classifier file: the given {len(data)} bytes are not a classifier of this project ({error}). "
            "Give the model.pt that train_ficklenet wrote."
        ) from error
