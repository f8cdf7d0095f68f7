"""The curves of a training for the report: points and ticks in the coordinates of a small drawing."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 420, 190  # the size of the drawing
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 12, 28  # its margins

# The curves: title, and number of digits after the point.
CURVES = {"loss": ("Training loss", 3), "val_map": ("Validation mAP", 3), "images_per_second": ("Images per second", 1)}


@dataclass(frozen=True)
class Point:
    """A measured value and its position in the drawing."""

    x: float
    y: float
    epoch: int
    value: float


@dataclass(frozen=True)
class Tick:
    """A line of the grid and its label."""

    place: float
    text: str


@dataclass(frozen=True)
class Curve:
    """One measured quantity over the epochs."""

    title: str
    digits: int
    points: tuple[Point, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]

    @property
    def path(self) -> str:
        """The points in the format of SVG's polyline."""
        return " ".join(f"{point.x:.1f},{point.y:.1f}" for point in self.points)


def training_curves(lines: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """The curves of all quantities that were measured."""
    curves = []
    for name, (title, digits) in CURVES.items():
        measured = [(int(line["epoch"]), float(line[name])) for line in lines if name in line]
        finite = [(epoch, value) for epoch, value in measured if math.isfinite(value)]
        if finite:
            curves.append(curve(title, digits, finite, top=1.0 if name == "val_map" else None))
    return curves


def curve(title: str, digits: int, measured: Sequence[tuple[int, float]], top: float | None = None) -> Curve:
    """A curve on an axis that starts at 0.

    Args:
        measured: (epoch, value >= 0), epochs ascending.
        top: the upper end of the axis; None for a round number above all values.
    """
    last_epoch = max(measured[-1][0], 1)
    step = _round_step((top or max(value for _, value in measured) or 1.0) / 4)
    top = top or step * math.ceil(max(value for _, value in measured) / step) or 1.0
    values = [step * n for n in range(int(top / step + 1e-6) + 1)]
    every = max(1, math.ceil(last_epoch / 6))
    epochs = range(0, last_epoch + 1, every)
    return Curve(
        title,
        digits,
        tuple(Point(_x(epoch, last_epoch), _y(value, top), epoch, value) for epoch, value in measured),
        tuple(Tick(_x(epoch, last_epoch), str(epoch)) for epoch in epochs),
        tuple(Tick(_y(value, top), f"{value:g}") for value in values),
    )


def _x(epoch: int, last_epoch: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * epoch / last_epoch


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top


def _round_step(step: float) -> float:
    """Rounds up to 1, 2, 2.5, 5 or 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * (1 - 1e-9))
