"""A backbone's stages, starting at its input: which of them are trained, and the learning rate of each."""

from collections.abc import Sequence
from typing import Literal

from torch import nn

NumFrozen = int | Literal["all"]


def freeze_first(stages: Sequence[Sequence[nn.Parameter]], num_frozen: NumFrozen) -> None:
    """Stops the training of the first stages' weights, and resumes it for the others.

    Args:
        stages: the weights of each stage, from ``Backbone.stage_weights``.
        num_frozen: the number of stages to freeze; "all" for the whole backbone.

    Raises:
        ValueError: the backbone has fewer stages.
    """
    count = num_frozen if isinstance(num_frozen, int) else len(stages)
    if not 0 <= count <= len(stages):
        raise ValueError(
            f'frozen stages: {num_frozen} given; this backbone has 0 to {len(stages)}. Give one of these, or "all".'
        )
    for number, weights in enumerate(stages):
        for weight in weights:
            weight.requires_grad_(number >= count)


def stage_factors(num_stages: int, layer_decay: float) -> list[float]:
    """Each stage's factor of the backbone's learning rate: 1 for the last, and ``layer_decay`` times that of the next.

    This is the layer-wise decay that is used to fine-tune pretrained transformers (Bao et al., ICLR 2022, appendix).

    Raises:
        ValueError: the decay is not above 0 and at most 1.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer decay: {layer_decay} given; give more than 0, at most 1 (1: no decay).")
    return [layer_decay ** (num_stages - 1 - number) for number in range(num_stages)]
