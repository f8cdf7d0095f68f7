"""Networks as portable files: torch archives of plain types and CPU tensors; reading them runs no code."""

import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from ficklenet.torch_file import load_whole

Model = TypeVar("Model", bound=nn.Module)


def pack_model(file_format: str, spec: Any, model: nn.Module, about: Mapping[str, Any] | None = None) -> bytes:
    """The bytes of a network's file.

    Args:
        file_format: name and version of the format.
        spec: a dataclass of numbers, texts and tuples: everything about the network except its weights.
        about: the origin of the network, as plain (nested) data, for ``model_record``.
    """
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in _fields(spec).items()}
    buffer = io.BytesIO()
    origin = json.loads(json.dumps(dict(about or {})))  # pickle stores equal texts once only if they are one object
    torch.save({"format": file_format, "spec": plain, "state": state, "about": origin}, buffer)
    return buffer.getvalue()


def model_record(data: bytes) -> dict[str, Any]:
    """The content of such a file without the weights: ``spec``, and ``about`` ({} if it was not given).

    Raises:
        ValueError: the bytes have changed since they were written; the message is only the reason.
    """
    content = load_whole(data)
    return {"spec": content["spec"], "about": content.get("about", {})}


def unpack_model(data: bytes, file_format: str, build: Callable[[Mapping[str, Any]], Model]) -> Model:
    """The network from such a file, on the CPU and in evaluation mode.

    Args:
        build: makes the untrained network from the fields of the specification.

    Raises:
        ValueError: the bytes are not such a file, or its weights do not fit its specification; the message is only the
            reason.
    """
    try:
        content = load_whole(data)
        if content["format"] != file_format:
            raise ValueError(f"format {content['format']!r}")
        spec = content["spec"]
        model = build({name: tuple(value) if isinstance(value, list) else value for name, value in spec.items()})
        model.load_state_dict(content["state"])
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(str(error).partition("\n")[0]) from error
    return model.eval()


def _fields(spec: Any) -> dict[str, Any]:
    return {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
