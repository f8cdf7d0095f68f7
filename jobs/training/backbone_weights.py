"""The weights that a backbone begins with: 'imagenet', 'none', the run's 'classifier', or a file's path."""

import hashlib
import io
import pickle
from collections.abc import Mapping
from urllib.error import URLError

import torch
from torch import nn

from ficklenet.backbones import imagenet_weights, load_backbone_weights
from jobs.run.directory import Run
from jobs.steps.networks import load_classifier
from storage.location import Location


def load_weights(
    backbone: nn.Module, name: str, weights: str, key: str, run: Run | None = None
) -> Mapping[str, torch.Tensor]:
    """Puts the weights into the backbone; all that came with them, {} for 'none'.

    Args:
        name: the backbone's.
        weights: as configured.
        key: of the configuration, for errors.
        run: whose classifier is meant by 'classifier', where that may be.

    Raises:
        ValueError: no such file, no download, no state dict, or not this backbone's.
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
    load_backbone_weights(backbone, state)
    return state


def fetch_imagenet_weights(name: str, key: str) -> Mapping[str, torch.Tensor]:
    """A backbone's ImageNet weights, downloaded where torch's cache on this machine has not got them.

    Raises:
        ValueError: there are none, or no network.
    """
    try:
        return imagenet_weights(name)
    except URLError as error:  # urllib's, and HTTPError with it
        raise ValueError(
            f"{key}: 'imagenet' cannot be downloaded from torchvision's registry ({error.reason}). Without a "
            "network give the path of a .pt state dict that was downloaded elsewhere, or 'none'."
        ) from error


def weights_hash(weights: str, key: str) -> str:
    """What of the weights belongs in a fingerprint: the file's sha256, or the name.

    The run's 'classifier' is an upstream step, whose id the fingerprint holds.
    """
    if weights in ("none", "imagenet", "classifier"):
        return weights
    return hashlib.sha256(_read(weights, key)).hexdigest()


def _read_weights(place: str, key: str) -> dict[str, torch.Tensor]:
    try:
        state = torch.load(io.BytesIO(_read(place, key)), map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(type(state).__name__)
        return state
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{key}: {place} is not a PyTorch state dict ({type(error).__name__}).") from None


def _read(place: str, key: str) -> bytes:
    try:
        return Location.parse(place).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{key}: no file {place}; give a .pt state dict, 'imagenet' or 'none'.") from None
