"""Translates masks whose values have other meanings, and finds out which values a mask has.

In a mask of the documented kind, 0 is background, each class has its value, and other values mean unknown.
`storage.images.read_mask` reads such masks directly. Other masks (0 and 255, colours, classes from 0, JPEG) are
translated into the documented kind once, at preparation.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from storage.drawings import encode_mask
from storage.errors import BadImage
from storage.headers import Header, fit_mask
from storage.image_bytes import whole_file
from storage.images import MAX_PIXELS, MAX_SCANS, _decode, _mask_values, read_many, read_saliency

SPECK_PIXELS = 100  # smaller components of a mask are rarely objects; a person would have to delete each

BACKGROUND, IGNORED, OWN_LABEL = "background", "ignore", "label"

Value = int | tuple[int, int, int]


@dataclass(frozen=True)
class MaskValues:
    """The meaning of the values in masks.

    Attributes:
        meaning: a grey value, palette number or (r, g, b) colour -> a class name, `BACKGROUND`, `IGNORED`, or
            `OWN_LABEL` (the only label of the mask's image). Values that are not listed are ignored.
    """

    meaning: dict[Value, str]

    @property
    def has_colours(self) -> bool:
        return any(isinstance(value, tuple) for value in self.meaning)


def parse_mask_values(text: str, class_names: Sequence[str]) -> MaskValues:
    """Read ``255=cat``, ``0=cat,1=dog,255=background``, ``#800000=cat`` or ``255=label``.

    Without a value for the background, 0 or black is background.

    Raises:
        ValueError: the text has another form, or a name is not a class.
    """
    meaning: dict[Value, str] = {}
    for part in text.split(","):
        given, _, name = (each.strip() for each in part.partition("="))
        colour = re.fullmatch(r"#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})", given)
        if not name or not (colour or re.fullmatch(r"[0-9]{1,5}", given)):
            raise ValueError(
                f"--mask-values {text}: {part.strip()!r} is not VALUE=CLASS. Write for example 255=cat, or a colour: "
                "#800000=cat."
            )
        if name not in (*class_names, BACKGROUND, IGNORED, OWN_LABEL):
            raise ValueError(
                f"--mask-values {text}: {name!r} is not a class. Allowed are {', '.join(class_names[:20])}, and "
                f"{BACKGROUND}, {IGNORED}, and {OWN_LABEL} for the only label of the mask's image."
            )
        meaning[tuple(int(each, 16) for each in colour.groups()) if colour else int(given)] = name  # type: ignore[index]
    kinds = {isinstance(value, tuple) for value in meaning}
    if len(kinds) > 1:
        raise ValueError(f"--mask-values {text}: give either numbers or colours.")
    if BACKGROUND not in meaning.values():
        black: Value = (0, 0, 0) if True in kinds else 0
        if black in meaning:
            raise ValueError(
                f"--mask-values {text}: 0 is a class here, so say what the background is, for example 255={BACKGROUND}."
            )
        meaning[black] = BACKGROUND
    return MaskValues(meaning)


@dataclass(frozen=True)
class Translation:
    """A mask that must be converted before it can be used.

    Attributes:
        uri: the original mask.
        picture: the header of its picture; the mask is turned and scaled to it.
        values: the meaning of its values; None: the values do not change.
        class_values: class name -> its value in the manifest's masks.
        labels: the labels of the image.
    """

    uri: str
    picture: Header
    values: MaskValues | None
    class_values: dict[str, int]
    labels: tuple[str, ...]

    def make(self) -> bytes:
        """The converted mask as a PNG.

        Raises:
            BadImage: the mask cannot be used.
        """
        if self.values is None:
            return encode_mask(_smallest(fit_mask(_pixels(self.uri, _mask_values), self.picture)))
        convert = _colours if self.values.has_colours else _any_values
        pixels = _pixels(self.uri, convert)
        return encode_mask(_smallest(fit_mask(self._translate(pixels), self.picture)))

    def _translate(self, pixels: np.ndarray) -> np.ndarray:
        """Class values (H, W) uint16; each pixel of a JPEG is read as the nearest listed value."""
        assert self.values is not None
        ignored = 255 if max(self.class_values.values()) < 255 else 65535
        numbers = {**self.class_values, BACKGROUND: 0, IGNORED: ignored}
        if len(self.labels) == 1:
            numbers[OWN_LABEL] = self.class_values[self.labels[0]]
        elif OWN_LABEL in self.values.meaning.values():
            raise BadImage(f"its mask is for the only label of the image, but the image has {len(self.labels)} labels")
        flat = pixels.reshape(pixels.shape[0], pixels.shape[1], -1).astype(np.int32)
        result = np.full(flat.shape[:2], ignored, np.uint16)
        listed = np.array([value if isinstance(value, tuple) else (value,) for value in self.values.meaning])
        targets = [numbers[name] for name in self.values.meaning.values()]
        if _is_jpeg(self.uri):
            distance = np.stack([((flat - value) ** 2).sum(axis=2) for value in listed])
            return np.array(targets, np.uint16)[distance.argmin(axis=0)]
        for value, target in zip(listed, targets, strict=True):
            result[(flat == value).all(axis=2)] = target
        return result


def mask_values(uri: str) -> tuple[int, ...]:
    """The different values of a mask of the documented kind, ascending.

    Raises:
        BadImage: the mask is of another kind.
    """
    return tuple(np.unique(_pixels(uri, _mask_values)).tolist())


def mask_colours(uri: str) -> tuple[tuple[int, int, int], ...]:
    """The most frequent colours of a mask with colours, at most 20.

    Raises:
        BadImage: it cannot be read.
    """
    pixels = _pixels(uri, _colours).reshape(-1, 3)
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    return tuple((int(r), int(g), int(b)) for r, g, b in colours[np.argsort(-counts)[:20]])


def saliency_scale(uris: Sequence[str]) -> int | None:
    """The highest value in saliency maps, if it is below the largest number of their bits; else None.

    Args:
        uris: a sample of a data set's maps. For 0 and 1 in 8 bits the result is 1; for 8 or 12 bits in 16-bit files it
            is 255 or 4095.
    """
    found = [each for each in read_many(uris, _highest) if not isinstance(each, BadImage)]
    highest, largest = max((each[0] for each in found), default=0), max((each[1] for each in found), default=0)
    scales = (1,) if largest == 255 else (1, 255, 1023, 4095, 16383)
    return next((scale for scale in scales if 0 < highest <= scale < largest), None)


def rescale_saliency(uri: str, scale: int | None) -> np.ndarray:
    """A saliency map as (H, W) uint8, scaled so that `scale` becomes 255; None: the largest number becomes 255.

    Raises:
        BadImage: it cannot be read.
    """
    if scale is None:
        return np.rint(read_saliency(uri) * 255).astype(np.uint8)
    pixels = _pixels(uri, lambda image: np.asarray(_grey(image), dtype=np.float64))
    return np.clip(np.rint(pixels * (255 / scale)), 0, 255).astype(np.uint8)


def _highest(uri: str) -> tuple[int, int]:
    """The highest value stored in a map, and the largest value that its bits can store."""

    def look(image: Image.Image) -> np.ndarray:
        if image.mode in ("1", "F"):  # always read as 0 to 1
            return np.array([255, 255])
        return np.array([int(np.asarray(_grey(image)).max()), 65535 if image.mode.startswith("I") else 255])

    highest, largest = _pixels(uri, look).tolist()
    return highest, largest


def _pixels(uri: str, convert: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    return _decode(whole_file(uri), MAX_PIXELS, MAX_SCANS, convert)


def _grey(image: Image.Image) -> Image.Image:
    return image if image.mode.startswith("I") else image.convert("L")


def _any_values(image: Image.Image) -> np.ndarray:
    """The stored numbers of a grey or palette picture; also of JPEGs and of grey stored as colours."""
    if image.mode in ("RGB", "RGBA", "CMYK", "YCbCr"):
        return np.asarray(image.convert("L"), dtype=np.uint16)
    return _mask_values(image, is_jpeg_fine=True)


def _colours(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def _is_jpeg(uri: str) -> bool:
    with Image.open(BytesIO(whole_file(uri))) as image:
        return image.format in ("JPEG", "MPO")


def _smallest(mask: np.ndarray) -> np.ndarray:
    return mask.astype(np.uint8) if mask.max(initial=0) <= 255 else mask.astype(np.uint16)
