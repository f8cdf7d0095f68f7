"""A folder of label maps at image size, one PNG per image: pseudo-labels, predictions.

The stored numbers are the labels: 0 background, class number + 1, `ignore_value` for unknown. Labels up to 255 are in a
palette PNG with VOC's colours, which every image viewer shows. Larger labels are in a 16-bit grey PNG.
"""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from storage.checksums import checksum, mismatch
from storage.errors import Damaged
from storage.label_values import ignore_value, label_dtype
from storage.location import Location
from storage.names import safe_name
from storage.receipts import Receipt

EDITED_BY_HAND = "If you edited it by hand, first copy it to a folder outside the run, for import_masks.py."


@dataclass(frozen=True)
class LabelFolder:
    """Label maps by image id.

    Attributes:
        location: the folder, such as ``<run>/predictions/labels``.
        num_classes: the number of classes in the manifest; it decides which label means "unknown".
    """

    location: Location
    num_classes: int

    def place(self, image_id: str) -> Location:
        """The file of an image's labels."""
        return self.location / f"{safe_name(image_id)}.png"

    def exists(self, image_id: str) -> bool:
        """Whether this image has labels."""
        return self.place(image_id).exists()

    def write(self, image_id: str, labels: np.ndarray) -> dict[str, str]:
        """Store an image's labels (H, W), replacing earlier ones.

        Returns:
            The checksum of the stored file for the unit's receipt, by its path relative to the folder's parent.

        Raises:
            ValueError: a label is not a class.
        """
        labels = np.asarray(labels)
        if wrong := self._wrong_label(labels):
            raise ValueError(f"{image_id}: {wrong}.")
        data = encode_label_png(labels)
        self.place(image_id).write_bytes(data)
        return {self._path(image_id): checksum(data)}

    def read(self, image_id: str, receipt: Receipt | None = None) -> np.ndarray:
        """An image's labels, (H, W) uint8; uint16 above 254 classes.

        Args:
            receipt: the receipt of the image's unit, with its checksums. Give it if it is known. Without it, damage is
                not found if the file is still a readable PNG with valid labels.

        Raises:
            Damaged: the file has changed since it was written, or it is missing although the unit is finished.
            FileNotFoundError: there is no file, and no receipt is given.
        """
        place, expected = self.place(image_id), receipt.objects.get(self._path(image_id), "") if receipt else ""
        try:
            data = place.read_bytes()
        except FileNotFoundError as error:
            if receipt is None:
                raise
            raise Damaged.of(place, "the file is missing") from error
        if expected and (wrong := mismatch(data, expected)):
            raise Damaged.of(place, wrong, EDITED_BY_HAND if is_readable_png(data) else "")
        try:
            labels = decode_label_png(data)
        except ValueError as error:
            raise Damaged.of(place, str(error), EDITED_BY_HAND if is_readable_png(data) else "") from error
        if wrong := self._wrong_label(labels):
            raise Damaged.of(place, wrong)
        return labels.astype(label_dtype(self.num_classes))

    def _path(self, image_id: str) -> str:
        return f"{self.location.name}/{safe_name(image_id)}.png"

    def _wrong_label(self, labels: np.ndarray) -> str:
        ignore = ignore_value(self.num_classes)
        is_wrong = ((labels < 0) | (labels > self.num_classes)) & (labels != ignore)
        if not is_wrong.any():
            return ""
        return f"label {labels[is_wrong][0]}, expected 0 (background) to {self.num_classes}, or {ignore} (unknown)"


def encode_label_png(labels: np.ndarray) -> bytes:
    """Labels (H, W) as a PNG with VOC's colours, or as 16-bit grey if a label exceeds 255.

    Args:
        labels: an array of whole numbers from 0 to 65535, with at least one pixel.

    Raises:
        ValueError: it is something else, such as a map of probabilities.
    """
    is_array = isinstance(labels, np.ndarray)
    if not is_array or labels.ndim != 2 or labels.dtype.kind not in "iub" or not labels.size:
        given = f"{labels.dtype} {labels.shape}" if is_array else f"a {type(labels).__name__}"
        raise ValueError(f"encode_label_png: given {given}, allowed: a numpy array (height, width) of whole numbers.")
    if (wrong := labels[(labels < 0) | (labels > 65535)]).size:
        raise ValueError(f"encode_label_png: given the label {wrong[0]}, allowed: whole numbers from 0 to 65535.")
    if labels.max() > 255:
        image = Image.fromarray(labels.astype(np.uint16))
    else:
        image = Image.fromarray(labels.astype(np.uint8))
        image.putpalette(voc_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def decode_label_png(data: bytes) -> np.ndarray:
    """The labels (H, W) of a PNG made by `encode_label_png`: uint8, or uint16 for 16-bit grey.

    Raises:
        ValueError: it is not a palette or grey PNG, or it cannot be read to its end.
    """
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # above twice the limit it is an error
            is_deep = image.mode.startswith("I;16")
            if not is_deep and image.mode not in ("P", "L"):
                raise ValueError(f"{image.mode} pixels, expected a palette or a grey PNG")
            return np.array(image, dtype=np.uint16 if is_deep else np.uint8)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow calls a bad header a SyntaxError
        raise ValueError("not a readable PNG file") from error


def is_readable_png(data: bytes) -> bool:
    """Whether these bytes are a whole PNG of any kind, such as one that an image editor has written."""
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    return True


def source_values(labels: np.ndarray, class_values: Sequence[int], ignored: int) -> np.ndarray:
    """Labels (H, W) as the data set's own class values; unknown pixels are 255.

    Args:
        class_values: the value of each class.
        ignored: the label of unknown pixels.
    """
    table = np.full(ignored + 1, 255)
    table[: len(class_values) + 1] = [0, *class_values]
    return table[labels]


def voc_palette() -> np.ndarray:
    """The colours of the VOC devkit, uint8 (256, 3); value 255, "void", is cream.

    Bit ``3 k + c`` of a value becomes bit ``7 - k`` of its colour's channel c.
    """
    values = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((values >> (3 * bit + channel)) & 1).astype(np.uint8) << (7 - bit)
    return palette
