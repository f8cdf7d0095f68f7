"""Checks the arrays that callers give to the functions of this package. Each refusal is one sentence.

Floats in 0..1 in place of bytes, or axes in another order, would give a wrong result without an error. The checks
compare types and shapes, and of the values only an image's few class numbers, so they take one to four microseconds
and never wait for a GPU.

This module does not import torch before it sees a tensor, because an import of torch takes seconds.
"""

from collections.abc import Sized
from typing import Any, Literal

import numpy as np

Values = Literal["uint8", "floats", "integers", "booleans", "numbers"]
Shape = tuple[int | str, ...]
"""The length of each axis; a text is the name of an axis of any length."""

_KINDS: dict[Values, str] = {"floats": "f", "integers": "iub", "booleans": "b", "numbers": "fiub"}


def require_image(image: Any, asked_by: str, source: str = "") -> None:
    """Refuses anything but an RGB image, a numpy array uint8 (H, W, 3), with pixels.

    Args:
        asked_by: the name of the function that the caller has called.
        source: where the caller gets such an image, for the message.

    Raises:
        ValueError: see above.
    """
    shape, text = ("height", "width", 3), f", RGB, with at least one pixel{source}"
    require_array(image, "uint8", shape, asked_by, "", text)
    if not image.size:
        raise _refusal(image, "array", "uint8", shape, asked_by, "", text)


def require_images(images: Any, asked_by: str, size: int | None = None, name: str = "") -> None:
    """Refuses anything but RGB images before normalisation, a tensor uint8 (B, 3, H, W).

    Args:
        size: the side of square images; None: any height and width.

    Raises:
        ValueError: see above.
    """
    shape = ("B", 3, "H", "W") if size is None else ("B", 3, size, size)
    require_tensor(images, "uint8", shape, asked_by, name, ", RGB")


def require_array(array: Any, values: Values, shape: Shape | None, asked_by: str, name: str, text: str = "") -> None:
    """Refuses anything but a numpy array of these values and this shape.

    Args:
        shape: None: any shape.
        name: of the argument; "" for the only one.
        text: what the sentence says after the shape, such as the range.

    Raises:
        ValueError: see above.
    """
    if not isinstance(array, np.ndarray) or not _has_shape(array, shape):
        raise _refusal(array, "array", values, shape, asked_by, name, text)
    is_right = array.dtype == np.uint8 if values == "uint8" else array.dtype.kind in _KINDS[values]
    if not is_right:
        raise _refusal(array, "array", values, shape, asked_by, name, text)


def require_tensor(tensor: Any, values: Values, shape: Shape | None, asked_by: str, name: str, text: str = "") -> None:
    """Refuses anything but a torch tensor of these values and this shape; arguments as in ``require_array``.

    Raises:
        ValueError: see above.
    """
    import torch

    if not isinstance(tensor, torch.Tensor) or not _has_shape(tensor, shape):
        raise _refusal(tensor, "tensor", values, shape, asked_by, name, text)
    dtype = tensor.dtype
    kind = "f" if dtype.is_floating_point else "b" if dtype == torch.bool else "c" if dtype.is_complex else "i"
    is_right = dtype == torch.uint8 if values == "uint8" else kind in _KINDS[values]
    if not is_right:
        raise _refusal(tensor, "tensor", values, shape, asked_by, name, text)


def require_one_per_image(num_images: int, asked_by: str, **others: Sized) -> None:
    """Refuses lists or tensors, given by their names, that have not one entry for each image.

    One mask key would serve all images, and images without a weight would be left out.

    Raises:
        ValueError: see above.
    """
    for name, each in others.items():
        if not isinstance(each, Sized):
            raise ValueError(f"{asked_by}: {name}: given {_described(each)}, allowed: one for each image.")
        if len(each) != num_images:
            raise ValueError(
                f"{asked_by}: given {num_images} images and {len(each)} {name}, allowed: as many {name} as images."
            )
        if isinstance(each, list | tuple) and each and isinstance(each[0], str):
            raise ValueError(
                f"{asked_by}: {name}: given {each[0]!r}, allowed: numbers, as mask_key of ficklenet.masks gives."
            )


def require_integer(number: Any, least: int, asked_by: str, name: str) -> None:
    """Refuses anything but a whole number, of Python or numpy, from `least` up.

    Raises:
        ValueError: see above.
    """
    if not isinstance(number, int | np.integer) or number < least:
        raise ValueError(f"{asked_by}: {name}: given {number!r}, allowed: a whole number from {least}.")


def require_classes(classes_S: Any, num_slots: int | None, asked_by: str, num_classes: int | None = None) -> None:
    """Refuses anything but the numbers of an image's classes, one for each of its maps.

    -1, which marks an empty slot in the stores, would become the label of the background.

    Args:
        classes_S: integers from 0.
        num_slots: the number of maps; None: any.
        num_classes: C; None: not known.

    Raises:
        ValueError: see above.
    """
    numbers = np.asarray(classes_S)
    is_list = numbers.ndim == 1 and num_slots in (None, len(numbers))
    if is_list and not len(numbers):
        return
    if is_list and numbers.dtype.kind in "iu" and 0 <= numbers.min() <= numbers.max() < (num_classes or np.inf):
        return
    limit = "from 0" if num_classes is None else f"from 0 to {num_classes - 1}"
    count = "" if num_slots is None else f", one for each of the {num_slots} maps"
    given = numbers.tolist() if numbers.size < 9 else _described(classes_S)
    raise ValueError(f"{asked_by}: classes: given {given}, allowed: class numbers {limit}{count}, without empty slots.")


def require_class_names(names: Any) -> None:
    """Refuses class names that are not a list of different texts; a text alone would be a class for each letter.

    Raises:
        ValueError: see above.
    """
    if isinstance(names, str):
        raise ValueError(f"class names: the text {names!r} given; give a tuple: ({names!r},).")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"class names: {list(names)} given; give at least one, without repetitions.")


def _has_shape(array: Any, shape: Shape | None) -> bool:
    if shape is None:
        return True
    given = array.shape
    if len(given) != len(shape):
        return False
    for length, wanted in zip(given, shape, strict=True):
        if length != wanted and not isinstance(wanted, str):
            return False
    return True


def _refusal(
    given: Any, kind: str, values: Values, shape: Shape | None, asked_by: str, name: str, text: str
) -> ValueError:
    what = (
        f"a uint8 {kind}" if values == "uint8" else f"{'a numpy array' if kind == 'array' else 'a tensor'} of {values}"
    )
    axes = "" if shape is None else f" ({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
    remedy = _remedy(given, kind) if values == "uint8" else ""
    return ValueError(
        f"{asked_by}:{f' {name}:' if name else ''} given {_described(given)}, allowed: {what}{axes}{text}.{remedy}"
    )


def _described(given: Any) -> str:
    """Type and shape of a given value, such as "float64 (4, 5)", "a tensor float32 (1, 3)" or "a str"."""
    dtype = str(getattr(given, "dtype", ""))
    if not dtype or not hasattr(given, "shape"):
        return f"a {type(given).__name__}"
    library, _, name = dtype.rpartition(".")
    return f"{'a tensor ' if library == 'torch' else ''}{name} {tuple(given.shape)}"


def _remedy(given: Any, kind: str) -> str:
    """An expression that makes the usual other images fit: floats, tensors for arrays, gray, channels first."""
    dtype, axes = str(getattr(given, "dtype", "")), tuple(getattr(given, "shape", ()))
    if not dtype:
        return ' Give np.asarray(image.convert("RGB")).' if hasattr(given, "convert") and kind == "array" else ""
    is_float, is_tensor = "float" in dtype, dtype.startswith("torch.")
    if not is_float and not dtype.endswith("uint8"):
        return ""
    conditions, image = list[str](), "image"
    if is_float:
        conditions.append("the values are in 0 to 1")
        image = "(255 * image).round()" + (".to(torch.uint8)" if is_tensor else '.astype("uint8")')
    if is_tensor and kind == "array":
        image += ".cpu().numpy()"
    if not is_tensor and kind == "tensor":
        image = f"torch.from_numpy({image})"
    axes_remedy = _axes_as_array if kind == "array" else _axes_as_tensor
    condition, image = axes_remedy(axes, image)
    conditions += [condition] if condition else []
    if image in ("", "image"):
        return ""
    return f" If {' and '.join(conditions)}, give {image}." if conditions else f" Give {image}."


def _axes_as_array(axes: tuple[int, ...], image: str) -> tuple[str, str]:
    """What must hold, and the expression of the image with the axes (H, W, 3); "" if they cannot become these."""
    if axes[:1] == (1,) and len(axes) == 4:
        axes, image = axes[1:], f"{image}[0]"
    if len(axes) == 2:
        return "the image is gray", f"np.stack([{image}] * 3, axis=-1)"
    if len(axes) != 3:
        return "", ""
    if axes[2] == 1:
        return "the image is gray", f"np.repeat({image}, 3, axis=-1)"
    if axes[2] == 4:
        return "the fourth channel is the transparency", f"{image}[..., :3]"
    if axes[2] != 3 and axes[0] == 3:
        return "the channels come first", f"{image}.transpose(1, 2, 0)"
    return "", image if axes[2] == 3 else ""


def _axes_as_tensor(axes: tuple[int, ...], image: str) -> tuple[str, str]:
    """What must hold, and the expression of the images with the axes (B, 3, H, W); "" if they cannot become these."""
    if len(axes) not in (3, 4):
        return "", ""
    image = f"{image}[None]" if len(axes) == 3 else image
    if axes[-3] != 3 and axes[-1] == 3:
        return "the channels come last", f"{image}.permute(0, 3, 1, 2)"
    return "", image if axes[-3] == 3 else ""
