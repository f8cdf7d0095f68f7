"""Pictures for people: maps laid over images, label maps in VOC colours, contact sheets."""

from dataclasses import dataclass

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

TILE = 160  # pixels, side of a tile
GAP = 6
CAPTION = 18
BACKGROUND = (255, 255, 255)


def voc_palette() -> np.ndarray:
    """The VOC devkit's colours: uint8 (256, 3); value 255 is the void's cream."""
    values = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((values >> (3 * bit + channel)) & 1).astype(np.uint8) << (7 - bit)
    return palette


def heat_tile(image: np.ndarray, evidence: np.ndarray, strength: float = 0.6) -> Image.Image:
    """A map over its image.

    Args:
        image: uint8 (H, W, 3).
        evidence: float (h, w) in [0, 1]; NaN is drawn as 0.
        strength: opacity of the map.
    """
    side = (TILE, TILE)
    base = np.asarray(Image.fromarray(image).resize(side).convert("L").convert("RGB"), np.float32)
    level = Image.fromarray(np.nan_to_num(evidence).astype(np.float32)).resize(side, Image.Resampling.BILINEAR)
    heat = matplotlib.colormaps["turbo"](np.clip(np.asarray(level), 0, 1))[..., :3] * 255
    return Image.fromarray(((1 - strength) * base + strength * heat).astype(np.uint8))


def image_tile(image: np.ndarray) -> Image.Image:
    """uint8 (H, W, 3) as a tile."""
    return Image.fromarray(image).resize((TILE, TILE))


def label_tile(labels: np.ndarray) -> Image.Image:
    """A label map (H, W), 0 background, 255 ignore, in VOC colours."""
    return Image.fromarray(voc_palette()[labels.astype(np.uint8)]).resize((TILE, TILE), Image.Resampling.NEAREST)


@dataclass(frozen=True)
class SheetRow:
    """One line of a contact sheet: a caption and its tiles, None where there is nothing to show."""

    caption: str
    tiles: list[Image.Image | None]


def contact_sheet(columns: list[str], rows: list[SheetRow]) -> Image.Image:
    """Rows of tiles under column titles, each row captioned."""
    width = GAP + len(columns) * (TILE + GAP)
    sheet = Image.new("RGB", (width, CAPTION + GAP + len(rows) * (TILE + CAPTION + GAP)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    for number, title in enumerate(columns):
        draw.text((GAP + number * (TILE + GAP), 3), title, "black", font)
    for line, row in enumerate(rows):
        top = CAPTION + GAP + line * (TILE + CAPTION + GAP)
        draw.text((GAP, top + 1), row.caption, "dimgray", font)
        for number, tile in enumerate(row.tiles):
            if tile is not None:
                sheet.paste(tile, (GAP + number * (TILE + GAP), top + CAPTION))
    return sheet
