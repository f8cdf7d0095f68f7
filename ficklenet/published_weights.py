"""Reads weights as other projects publish them: state dicts in training checkpoints, prefixes of wrappers, other names.

This module gets only plain data. Callers read files with ``weights_only``, so no code in a file runs.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

WRAPPINGS = ("state_dict", "model_state_dict", "model")
"""The usual keys of the network's state dict in training checkpoints, which also contain other state dicts."""
PREFIXES = ("module.", "_orig_mod.")
"""The prefixes that DistributedDataParallel and torch.compile add to every name."""


def unwrap_state_dict(content: Any) -> dict[str, Tensor]:
    """The network's state dict in the content of a weights file.

    A state dict is returned unchanged. In a training checkpoint, the entry under a key of ``WRAPPINGS`` is used if
    there is exactly one. Prefixes are removed if every name has them.

    Args:
        content: the result of ``torch.load(..., weights_only=True)`` or safetensors.

    Raises:
        ValueError: there is no state dict, or it is not clear which one is meant. The message says what was found; it
            continues the name of the file: "contains ...".
    """
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"contains a {type(content).__name__}, not names with weights. Give a file with a state dict.")
    inner = [name for name in WRAPPINGS if isinstance(content.get(name), Mapping)]
    if len(inner) > 1:
        raise ValueError(
            f"contains several state dicts ({', '.join(inner)}), so it is not clear which one is meant. "
            "Save the right one as a separate file."
        )
    if inner:
        return unwrap_state_dict(content[inner[0]])
    others = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if others or not content:
        found = ", ".join(f"{name} ({type(content[name]).__name__})" for name in others[:3]) or "nothing"
        raise ValueError(
            f"contains {found}{', ...' if len(others) > 3 else ''}, but names with weights are expected. Give a file "
            f"with a state dict, or with one under {', '.join(map(repr, WRAPPINGS))}."
        )
    return _without_prefixes(content)


def matched_in_order(state_dict: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the same network under this network's names; the given weights must have the same order.

    Raises:
        ValueError: the number of weights or a shape differs.
    """
    given = list(state_dict.items())
    if len(given) != len(wanted):
        raise ValueError(
            f"backbone weights: {len(given)} given, but this network has {len(wanted)}. "
            "Give the weights of this backbone."
        )
    for (name, value), (own_name, own_value) in zip(given, wanted.items(), strict=True):
        if value.shape != own_value.shape:
            raise ValueError(
                f"backbone weights: {name} has shape {tuple(value.shape)}, but {own_name} in its place has "
                f"{tuple(own_value.shape)}. Give the weights of this backbone."
            )
    return dict(zip(wanted, state_dict.values(), strict=True))


def _without_prefixes(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    plain = dict(state_dict)
    while prefix := next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in plain)), None):
        plain = {name.removeprefix(prefix): value for name, value in plain.items()}
    return plain
