"""Drawn scenes for the demo and the tests: images, labels and exact masks without any download.

They are a small version of the problem that FickleNet solves. Every object is a large plain body with one small badge.
Only the badge identifies the class. The body's colour is a weak hint, because neighbouring classes share half of their
hues. A plain classifier looks at the badges, but the maps should cover the bodies. The background has many shapes that
belong to no class.

Frame: x to the right and y down, in pixels. A shape is a signed distance in pixels, negative inside, so that its edge
can be softened.
"""

import colorsys
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWN_CLASS_NAMES = ("star", "ring", "cross", "stripes", "moon")
BADGE_COLOURS = ((0.85, 0.1, 0.1), (0.1, 0.25, 0.85), (0.05, 0.5, 0.2), (0.1, 0.1, 0.1), (0.55, 0.1, 0.6))

MAX_OBJECTS = 3
NUM_CLUTTER = 26
PLACEMENT_TRIES = 60
BADGE_SIZE = 0.45  # relative to the body's smaller radius

Pixels = NDArray[np.floating]


@dataclass(frozen=True)
class DrawnScene:
    """A scene: image uint8 RGB (H, W, 3); labels, ascending; mask uint8 (H, W): label + 1, background 0."""

    image: NDArray[np.uint8]
    labels: tuple[int, ...]
    mask: NDArray[np.uint8]


@dataclass(frozen=True)
class _Body:
    """An ellipse; the badge is at the positive end of its long axis."""

    label: int
    x: float
    y: float
    radius: float
    flatness: float  # smaller radius / larger radius
    angle: float


def draw_scene(
    index: int,
    *,
    seed: int = 0,
    size: tuple[int, int] = (120, 160),
    num_classes: int = len(DRAWN_CLASS_NAMES),
) -> DrawnScene:
    """Draws scene number ``index`` of the endless sequence of a seed; the same arguments draw the same scene.

    Args:
        index: the number of the scene, from 0.
        seed: the seed of the sequence; training and validation scenes have another seed or index.
        size: (height, width) in pixels.
        num_classes: the number of ``DRAWN_CLASS_NAMES`` that occur.

    Raises:
        ValueError: there are not so many classes, or fewer than one is asked for.
    """
    if not 1 <= num_classes <= len(DRAWN_CLASS_NAMES):
        raise ValueError(f"num_classes: {num_classes} given; give 1 to {len(DRAWN_CLASS_NAMES)}.")
    generator = np.random.default_rng((seed, index))
    image = _draw_ground(size, generator)
    mask = np.zeros(size, np.uint8)
    bodies = _place_bodies(size, num_classes, generator)
    for body in bodies:
        _draw_body(image, mask, body, num_classes, generator)
    image += generator.normal(0, 0.015, image.shape)  # a little sensor noise
    pixels = (image.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return DrawnScene(pixels, tuple(sorted(body.label for body in bodies)), mask)


def _draw_ground(size: tuple[int, int], generator: np.random.Generator) -> Pixels:
    """A background of weak colour with small discs, bars and rings of every hue, all smaller than any body."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    image = np.empty((*size, 3), np.float32)
    image[:] = _colour(generator.uniform(), 0.16, generator.uniform(0.55, 0.8))
    for _ in range(4):
        wave = np.sin(generator.normal(0, 0.06) * x + generator.normal(0, 0.06) * y + generator.uniform(0, 6.3))
        image += 0.035 * wave[..., None] * generator.normal(1, 0.3, 3)
    for _ in range(NUM_CLUTTER):
        radius = generator.uniform(0.015, 0.05) * min(size)
        place = (generator.uniform(0, size[1]), generator.uniform(0, size[0]))
        window, along, across = _frame(size, *place, generator.uniform(0, np.pi), reach=2.5 * radius)
        shape = _clutter(int(generator.integers(3)), along, across, radius)
        colour = _colour(generator.uniform(), generator.uniform(0.2, 0.7), generator.uniform(0.35, 0.95))
        _paint(image[window], shape, colour, opacity=generator.uniform(0.4, 0.9))
    return image


def _clutter(kind: int, along: Pixels, across: Pixels, radius: float) -> Pixels:
    distance = np.hypot(along, across)
    if kind == 0:
        return distance - radius  # disc
    if kind == 1:
        return np.maximum(np.abs(along) - 2.5 * radius, np.abs(across) - radius / 3)  # bar
    return np.abs(distance - radius) - radius / 4  # ring


def _place_bodies(size: tuple[int, int], num_classes: int, generator: np.random.Generator) -> list[_Body]:
    """One to three bodies of different classes that do not hide each other."""
    wanted = generator.permutation(num_classes)[: generator.integers(1, MAX_OBJECTS + 1)]
    bodies: list[_Body] = []
    for label in wanted:
        for _ in range(PLACEMENT_TRIES):
            radius = generator.uniform(0.2, 0.33) * min(size)
            body = _Body(
                label=int(label),
                x=generator.uniform(0.8 * radius, size[1] - 0.8 * radius),
                y=generator.uniform(0.8 * radius, size[0] - 0.8 * radius),
                radius=radius,
                flatness=generator.uniform(0.6, 0.9),
                angle=generator.uniform(0, 2 * np.pi),
            )
            if all(np.hypot(body.x - other.x, body.y - other.y) > radius + other.radius for other in bodies):
                bodies.append(body)
                break
    return bodies


def _draw_body(
    image: Pixels, mask: NDArray[np.uint8], body: _Body, num_classes: int, generator: np.random.Generator
) -> None:
    """Paints the shadow, outline, body and badge into the image, and the body into the mask."""
    window, along, across = _frame(mask.shape, body.x, body.y, body.angle, reach=body.radius + 4)
    target = image[window]
    distance = (np.hypot(along, across / body.flatness) - body.radius) * body.flatness
    mask[window][distance < 0] = body.label + 1

    # The hue is a hint of the class. The ranges of neighbouring classes overlap, so each hue occurs in two classes.
    hue = (body.label + generator.uniform(-1, 1)) / num_classes
    saturation, value = generator.uniform(0.45, 0.7), generator.uniform(0.7, 0.95)
    downwards = np.sin(body.angle) * along + np.cos(body.angle) * across
    light = 1 - 0.15 * downwards / body.radius
    _paint(target, distance - 3, (0.1, 0.1, 0.12), opacity=0.25)
    _paint(target, distance, _colour(hue, saturation, 0.55 * value))
    _paint(target, distance + 1.6, light[..., None] * np.asarray(_colour(hue, saturation, value)))

    badge_radius = BADGE_SIZE * body.flatness * body.radius
    u, v = (along - 0.42 * body.radius) / badge_radius, across / badge_radius
    _paint(target, (np.hypot(u, v) - 1) * badge_radius, (0.98, 0.97, 0.93))
    _paint(target, _symbol(body.label, u, v) * badge_radius, BADGE_COLOURS[body.label])


def _symbol(label: int, u: Pixels, v: Pixels) -> Pixels:
    """The signed distance of a class's symbol in a badge of radius 1."""
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    match DRAWN_CLASS_NAMES[label]:
        case "star":
            return radius - 0.5 - 0.3 * np.cos(5 * angle)
        case "ring":
            return np.abs(radius - 0.55) - 0.17
        case "cross":
            a, b = np.abs(u), np.abs(v)
            return np.minimum(np.maximum(a - 0.75, b - 0.2), np.maximum(b - 0.75, a - 0.2))
        case "stripes":
            return np.maximum(np.abs((v + 0.9) % 0.6 - 0.3) - 0.14, radius - 0.8)
    return np.maximum(radius - 0.75, 0.6 - np.hypot(u - 0.4, v))  # moon


def _frame(
    size: tuple[int, ...], x: float, y: float, angle: float, reach: float
) -> tuple[tuple[slice, slice], Pixels, Pixels]:
    """The pixels within a distance of a point, and their coordinates along and across an axis through it."""
    top, left = max(0, int(y - reach)), max(0, int(x - reach))
    window = np.s_[top : min(size[0], int(y + reach) + 2), left : min(size[1], int(x + reach) + 2)]
    rows, cols = np.mgrid[window].astype(np.float32)
    dx, dy = cols - np.float32(x), rows - np.float32(y)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return window, cos * dx + sin * dy, cos * dy - sin * dx


def _paint(target: Pixels, distance: Pixels, colour: ArrayLike, opacity: float = 1.0) -> None:
    """Blends a colour over the pixels inside a shape; the edge is softened over one pixel."""
    cover = np.clip(0.5 - distance, 0, 1)[..., None] * opacity
    target += cover * (np.asarray(colour, np.float32) - target)


def _colour(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    return colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
