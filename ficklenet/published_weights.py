"""Weights as others publish them: state dicts inside training checkpoints, wrappers' prefixes, other names.

Only plain data is looked at. Whoever reads a file reads it with ``weights_only``, so no code in it runs.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

WRAPPINGS = ("state_dict", "model_state_dict", "model")
"""Keys under which training checkpoints keep the network's state dict, beside the optimiser's and others."""
PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""


def unwrap_state_dict(content: Any) -> dict[str, Tensor]:
    """The network's state dict out of what a weights file holds.

    A state dict is taken as it is. From a training checkpoint the entry that ``WRAPPINGS`` names is taken, if there is
    exactly one. Prefixes are removed where every name has them.

    Args:
        content: what ``torch.load(..., weights_only=True)`` or safetensors gave.

    Raises:
        ValueError: there is no state dict, or it is not clear which; the sentence says what was found. It begins in
            the middle, to stand behind the file's name: "holds ...".
    """
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"holds a {type(content).__name__}, not names with weights. Give a file with a state dict.")
    inner = [name for name in WRAPPINGS if isinstance(content.get(name), Mapping)]
    if len(inner) > 1:
        raise ValueError(
            f"holds several state dicts ({', '.join(inner)}), and which one is meant is not clear. "
            "Save the one you mean as a file of its own."
        )
    if inner:
        return unwrap_state_dict(content[inner[0]])
    others = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if others or not content:
        found = ", ".join(f"{name} ({type(content[name]).__name__})" for name in others[:3]) or "nothing"
        raise ValueError(
            f"holds {found}{', ...' if len(others) > 3 else ''} where names with weights are expected. Give a file "
            f"with a state dict, or with one under {', '.join(map(repr, WRAPPINGS))}."
        )
    return _without_prefixes(content)


def matched_in_order(state_dict: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same network's weights under its own names, where the given ones come in the same order.

    Raises:
        ValueError: the number of weights or a shape differs.
    """
    given = list(state_dict.items())
    if len(given) != len(wanted):
        raise ValueError(f"backbone weights: {len(given)} given, this network has {len(wanted)}.")
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
