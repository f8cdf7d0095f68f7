"""Pictures for people: maps drawn over images, label maps in colours, contact sheets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ficklenet.geometry import GridGeometry
from jobs.maps.evidence import resized
from jobs.reporting.palette import label_palette

TILE = 192  # pixels, the longer side of a tile
GAP = 6
LINE = 18  # of text
SWATCH = 12
BACKGROUND = (255, 255, 255)
CORNERS = GridGeometry(8)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def label_colours(labels: np.ndarray, ignore_value: int) -> np.ndarray:
    """Labels (...) in colours, uint8 (..., 3). Past 254 classes colours repeat, because 255 is the ignore colour."""
    return label_palette()[np.where(labels == ignore_value, 255, labels % 255)]


def image_tile(image: np.ndarray) -> Image.Image:
    """An image uint8 (H, W, 3) as a tile of the same aspect ratio."""
    height, width = (max(1, round(side * TILE / max(image.shape[:2]))) for side in image.shape[:2])
    return Image.fromarray(image).resize((width, height))


def heat_tile(
    tile: Image.Image, evidence: np.ndarray, geometry: GridGeometry = CORNERS, strength: float = 0.6
) -> Image.Image:
    """A map drawn over the tile of its image.

    Args:
        evidence: float (h, w) in [0, 1]; NaN is drawn as 0.
        geometry: where the cells of the map lie.
        strength: opacity of the map.
    """
    base = np.asarray(tile.convert("L").convert("RGB"), np.float32)
    level = resized(np.nan_to_num(evidence).astype(np.float32), (tile.height, tile.width), geometry)
    heat = matplotlib.colormaps["turbo"](np.clip(level, 0, 1))[..., :3] * 255
    return Image.fromarray(((1 - strength) * base + strength * heat).astype(np.uint8))


def label_tile(labels: np.ndarray, ignore_value: int, size: tuple[int, int]) -> Image.Image:
    """A label map (H, W) in colours, enlarged to the (width, height) of an image tile."""
    return Image.fromarray(label_colours(labels, ignore_value)).resize(size, Image.Resampling.NEAREST)


@dataclass(frozen=True)
class SheetRow:
    """One line of a contact sheet: a caption, and a tile for each column (None for an empty place)."""

    caption: str
    tiles: Sequence[Image.Image | None]


def contact_sheet(columns: Sequence[str], rows: Sequence[SheetRow], colours: Mapping[str, np.ndarray]) -> Image.Image:
    """A legend, column titles, and rows of tiles with captions; columns without any tile are left out.

    Args:
        colours: the colours of the legend, uint8 (3,), by name.
    """
    font = ImageFont.load_default(size=12)
    filled = [n for n in range(len(columns)) if any(row.tiles[n] for row in rows)]
    legend = _legend(colours, GAP + len(filled) * (TILE + GAP), font)
    heights = [LINE + max(tile.height for tile in row.tiles if tile) + GAP for row in rows]
    *tops, bottom = accumulate(heights, initial=legend.height + LINE + GAP)
    sheet = Image.new("RGB", (legend.width, bottom), BACKGROUND)
    sheet.paste(legend)
    draw = ImageDraw.Draw(sheet)
    for place, column in enumerate(filled):
        left = GAP + place * (TILE + GAP)
        draw.text((left, legend.height + 3), columns[column], "black", font)
        for top, row in zip(tops, rows, strict=True):
            if tile := row.tiles[column]:
                sheet.paste(tile, (left, top + LINE))
    for top, row in zip(tops, rows, strict=True):
        draw.text((GAP, top + 1), row.caption, "dimgray", font)
    return sheet


def _legend(colours: Mapping[str, np.ndarray], width: int, font: Font) -> Image.Image:
    """The colours of the maps and the labels with their names, in as many lines as needed."""
    scale = heat_tile(Image.new("RGB", (8 * SWATCH, SWATCH), "gray"), np.array([[0, 1], [0, 1]]))
    swatches = {name: Image.new("RGB", (SWATCH, SWATCH), tuple(colour.tolist())) for name, colour in colours.items()}
    placed, left, top = [], GAP, GAP
    for name, swatch in {"maps, 0 to 1": scale, **swatches}.items():
        length = swatch.width + GAP + round(font.getlength(name))
        if left > GAP and left + length > width:
            left, top = GAP, top + LINE
        placed.append((name, ImageOps.expand(swatch, 1, "gray"), left, top))
        left += length + 3 * GAP
    legend = Image.new("RGB", (width, top + LINE + GAP), BACKGROUND)
    draw = ImageDraw.Draw(legend)
    for name, swatch, left, top in placed:
        legend.paste(swatch, (left, top))
        draw.text((left + swatch.width + GAP, top), name, "black", font)
    return legend
