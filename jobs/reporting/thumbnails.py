"""Small pictures inside a web page, as data URIs: photographs, and maps and labels that are drawn over them.

Maps and labels keep one pixel per cell, so a map takes a few hundred bytes. The page's style sheet enlarges them over
the photograph with aligned corners.
"""

import base64
import io

import matplotlib
import numpy as np
from PIL import Image

from jobs.reporting.palette import label_palette

PICTURE_SIDE = 256  # pixels, the longer side of a photograph
PICTURE_QUALITY = 60  # of WebP
COLOUR_MAP = "turbo"
OPAQUE_FROM = 0.15  # evidence from which a map is fully opaque
COLOUR_LEVELS = 64  # fewer compress better and look the same

# Right, false and missed cells of a class, in colours that colour-blind people can tell apart (Okabe and Ito, 2008).
RIGHT, FALSE, MISSED = (0, 158, 115), (213, 94, 0), (240, 228, 66)
DOUBT = (255, 0, 255)  # no class has a colour near it, so doubtful cells beside a mask are not taken for a class


def picture_uri(image: np.ndarray) -> str:
    """A photograph uint8 (H, W, 3), made small."""
    picture = Image.fromarray(image)
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return _uri(picture, quality=PICTURE_QUALITY)


def heat_uri(evidence: np.ndarray) -> str:
    """A map, float (h, w) in [0, 1], in colours; transparent at cells with almost no evidence."""
    levels = np.rint(np.clip(evidence, 0, 1) * (COLOUR_LEVELS - 1)) / (COLOUR_LEVELS - 1)
    return _uri(Image.fromarray(_heat(levels.astype(np.float32))), lossless=True)


def labels_uri(labels: np.ndarray, ignore_value: int) -> str:
    """A label map (h, w) in colours; transparent at ignored cells."""
    is_known = labels != ignore_value
    colours = label_palette()[np.where(is_known, labels, 0) % 255]  # 255 is the ignore colour, so colours repeat
    alpha = np.where(is_known, 255, 0).astype(np.uint8)
    return _uri(Image.fromarray(np.dstack([colours, alpha])), lossless=True)


def outcome_uri(is_seed: np.ndarray, is_true: np.ndarray) -> str:
    """The cells of a class, coloured as right, false or missed, transparent elsewhere; arguments are bool (h, w)."""
    colours = np.zeros((*is_seed.shape, 4), np.uint8)
    for where, colour in ((is_seed & is_true, RIGHT), (is_seed & ~is_true, FALSE), (~is_seed & is_true, MISSED)):
        colours[where] = (*colour, 255)
    return _uri(Image.fromarray(colours), lossless=True)


def doubt_uri(is_doubtful: np.ndarray) -> str:
    """Doubtful cells, bool (h, w), in one colour; transparent elsewhere."""
    colours = np.zeros((*is_doubtful.shape, 4), np.uint8)
    colours[is_doubtful] = (*DOUBT, 255)
    return _uri(Image.fromarray(colours), lossless=True)


def colour_of(label: int) -> str:
    """A label's colour for a style sheet, such as '#800000'."""
    return "#" + bytes(label_palette()[label % 255]).hex()


def colour_scale(number: int = 21) -> list[str]:
    """The maps' colours from 0 to 1, for a legend."""
    return ["#" + bytes(colour).hex() for colour in _heat(np.linspace(0, 1, number))]


def _heat(evidence: np.ndarray) -> np.ndarray:
    """Colours with opacity, uint8 (..., 4); opaque from `OPAQUE_FROM` on."""
    colours: np.ndarray = matplotlib.colormaps[COLOUR_MAP](evidence, bytes=True)
    colours[..., 3] = 255 * np.clip(evidence / OPAQUE_FROM, 0, 1)
    return colours


def _uri(picture: Image.Image, **options: int) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", **options)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
