"""Checks what a notebook gives to the calls of `trained_run`. Each refusal is one sentence.

The sentence says what was given and what is allowed.
"""

import difflib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ficklenet import arguments
from storage.tree import words

_DEVICES = ("auto", "cpu", "cuda")
_EXAMPLE = "predictions.mirror=true"


def require_settings(settings: object) -> None:
    """Refuses settings that are not a list of texts, such as one text or a dict.

    Raises:
        ValueError: see above.
    """
    if isinstance(settings, list | tuple) and all(isinstance(each, str) and "=" in each for each in settings):
        return
    given = f"the text {settings!r}" if isinstance(settings, str) else repr(settings)
    example = settings if isinstance(settings, str) and "=" in settings else _EXAMPLE
    raise ValueError(f"settings: given {given}, allowed: a list of texts, such as {[example]}.")


def require_path(path: object) -> str:
    """The path of a run, or of an image, as text.

    Raises:
        TypeError: it is neither text nor a path.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path: given a {type(path).__name__}, allowed: a file's or folder's path or an s3:// address.")
    return os.fspath(path)


def usable_device(device: str) -> str:
    """The device to compute on: "auto" is "cuda" where torch finds a GPU, else "cpu".

    Raises:
        ValueError: it is not "auto", "cpu" or "cuda", or it is "cuda" and torch finds no GPU.
    """
    if device not in _DEVICES:
        one_gpu = " To choose one of several GPUs, set CUDA_VISIBLE_DEVICES." if str(device).startswith("cuda:") else ""
        raise ValueError(f"device: given {device!r}, allowed: {', '.join(map(repr, _DEVICES))}.{one_gpu}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: given 'cuda', but torch finds no GPU on this machine; give device='cpu'.")
    return device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def require_id(image_id: object, asked_by: str) -> None:
    """Refuses anything but a text as the id of an image, such as a row number or a picture.

    Raises:
        TypeError: see above.
    """
    if not isinstance(image_id, str):
        given = repr(image_id) if isinstance(image_id, int) else f"a {type(image_id).__name__}"
        raise TypeError(
            f"{asked_by}: given {given}, allowed: the id of an image, which is a text; run.image_ids has the ids of "
            "all images."
        )


def known_step(step: str, allowed: Sequence[str], asked_by: str) -> str:
    """The name of a step's folder, such as "pseudo_labels"; people may also write "pseudo-labels".

    Raises:
        ValueError: the step does not store what the call reads.
    """
    name = step.replace("-", "_") if isinstance(step, str) else step
    if name not in allowed:
        other = " run.stored_seeds reads seeds." if name == "seeds" else ""
        raise ValueError(f"{asked_by}: given the step {step!r}, allowed: {', '.join(map(repr, allowed))}.{other}")
    return name


def require_image(image: Any, asked_by: str) -> None:
    """Refuses anything but an RGB image, uint8 (H, W, 3), with pixels; also floats in 0 to 1 that became bytes.

    Raises:
        ValueError: see above.
    """
    source = ", such as run.image(image_id) for an image of the run, or run.read(path) for another one"
    arguments.require_image(image, asked_by, source)
    if image.max() == 1:
        raise ValueError(
            f"{asked_by}: given an image with the values 0 and 1 only, allowed: RGB with values from 0 to 255{source}."
        )


def require_classes(classes: Sequence[str], known: Sequence[str], asked_by: str) -> None:
    """Refuses anything but a list with names of the run's classes, each of them once.

    A set is refused, because it has no order, and the maps come in the order of the classes.

    Args:
        known: the run's class names.

    Raises:
        ValueError: see above.
    """
    if not isinstance(classes, list | tuple | np.ndarray):
        is_text = isinstance(classes, str)
        example = (difflib.get_close_matches(str(classes), known, n=1) or list(known))[:1]
        given = f"the text {classes!r}" if is_text else f"a {type(classes).__name__}"
        raise ValueError(f"{asked_by}: given {given}, allowed: a list of class names, such as {example}.")
    unknown = [name for name in classes if name not in known]
    if twice := [name for name in known if list(classes).count(name) > 1]:
        raise ValueError(f"{asked_by}: given {twice[0]!r} more than once; give each class once.")
    if not unknown and len(classes):
        return
    near = difflib.get_close_matches(str(unknown[0]), known, n=1) if unknown else []
    given, hint = repr(unknown[0]) if unknown else "no class", f" Did you mean {near[0]!r}?" if near else ""
    if unknown and isinstance(unknown[0], int | np.integer) and 0 <= unknown[0] < len(known):
        hint = f" Give the name: class {unknown[0]} is {known[int(unknown[0])]!r}."
    raise ValueError(f"{asked_by}: given {given}, allowed: some of {words(known)}.{hint}")


def require_maps(maps: Any, grid: tuple[int, int], asked_by: str) -> None:
    """Refuses anything but an array of maps or labels on the grid of the classifier.

    Raises:
        ValueError: see above.
    """
    is_array = isinstance(maps, np.ndarray)
    if is_array and maps.dtype.kind in "fiub" and maps.shape[-2:] == grid:
        return
    given = f"{maps.dtype} {maps.shape}" if is_array else f"a {type(maps).__name__}"
    raise ValueError(
        f"{asked_by}: given {given}, allowed: a numpy array (..., {grid[0]}, {grid[1]}), such as maps.max of localize, "
        "or the .values of an xarray.DataArray."
    )


def require_size(size: Any, asked_by: str) -> None:
    """Refuses anything but two whole numbers from 1.

    Raises:
        ValueError: see above.
    """
    is_pair = isinstance(size, list | tuple) and len(size) == 2
    if not is_pair or not all(isinstance(side, int | np.integer) and side > 0 for side in size):
        raise ValueError(
            f"{asked_by}: given the size {size!r}, allowed: (height, width) in pixels, such as image.shape[:2]."
        )


def require_choice(refine: object, asked_by: str) -> None:
    """Refuses a choice that is not True, False or None, such as the text "false", which Python takes for true.

    Raises:
        ValueError: see above.
    """
    if not isinstance(refine, bool | np.bool_ | None):
        raise ValueError(f"{asked_by}: given refine={refine!r}, allowed: True, False, or None for the run's setting.")
