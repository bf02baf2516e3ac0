"""
The generated demo dataset: outlined shapes in COCO format. Some of the classes have no masks.

Two shapes of different colours often have almost the same box, so only the class tells which of them is
meant. A class-agnostic mask head cannot know that; one that gets its weights from the class can.

Classes are 4 colours x 8 shapes. The classes (colour k mod 4, shape k) have boxes only, so that each
colour and each shape is seen with masks in other combinations.
"""

from functools import partial

import numpy as np

from maskx_d2.demo.generated_dataset import (
    IMAGE_SIDE,
    Scenes,
    boxes_apart,
    nearly_the_same_box,
    write_dataset,
)

COLOURS = {
    "red": (220, 50, 50),
    "green": (50, 190, 60),
    "blue": (60, 80, 225),
    "yellow": (230, 210, 50),
}
SHAPES = ("ring", "square", "plus", "cross", "diamond", "H", "I", "triangle")
CLASS_NAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
BOXES_ONLY = tuple(f"{list(COLOURS)[k % len(COLOURS)]} {shape}" for k, shape in enumerate(SHAPES))

_PAIR_PROBABILITY = 0.6
_MARGIN = 6
_GAP = 10


class _Shapes(Scenes):
    """One or two clusters, each a shape or a pair of shapes in nearly the same box."""

    noise = 10

    def boxes(self) -> list[np.ndarray]:
        count = self.rng.integers(1, 3)
        return boxes_apart(self.rng, IMAGE_SIDE, count=count, sides=(44, 60), margin=_MARGIN, gap=_GAP)

    def pixels(self, class_name: str, mask: np.ndarray) -> np.ndarray:
        colour = np.array(COLOURS[class_name.split()[0]])
        return colour * self.rng.uniform(0.85, 1) + self.rng.uniform(-18, 18, 3)

    def cluster(self, box: np.ndarray) -> list[tuple[str, np.ndarray]]:
        colour, shape = self._other(list(COLOURS)), self._other(SHAPES)
        behind = self._mask(shape, box)
        if self.rng.random() > _PAIR_PROBABILITY:
            return [(f"{colour} {shape}", behind)]
        while True:
            # Draw a second shape in nearly the same box until at least half of the first is visible.
            other_colour = self._other(list(COLOURS), than=colour)
            other_shape = self._other(SHAPES, than=shape)
            near_box = nearly_the_same_box(self.rng, box, IMAGE_SIDE)
            before = self._mask(other_shape, near_box)
            if (behind & ~before).sum() >= behind.sum() / 2:
                return [
                    (f"{colour} {shape}", behind),
                    (f"{other_colour} {other_shape}", before),
                ]

    def _other(self, values, than=None) -> str:
        return str(self.rng.choice([value for value in values if value != than]))

    def _mask(self, shape: str, box: np.ndarray) -> np.ndarray:
        """(H, W) bool mask of an outlined shape that fills a box."""
        x0, y0, x1, y1 = box
        pixels = np.arange(IMAGE_SIDE) + 0.5
        # Coordinates in which the box is [-1, 1] x [-1, 1].
        u = ((pixels - x0) / (x1 - x0) * 2 - 1)[None, :]
        v = ((pixels - y0) / (y1 - y0) * 2 - 1)[:, None]
        return _inside(shape, u, v, stroke=self.rng.uniform(0.36, 0.44))


def _inside(shape: str, u: np.ndarray, v: np.ndarray, stroke: float) -> np.ndarray:
    """Where (u, v), in units of the half-size, is on an outlined shape with the given stroke width."""
    in_box = (abs(u) <= 1) & (abs(v) <= 1)
    inner = 1 - stroke
    if shape == "ring":
        radius = np.hypot(u, v)
        return (radius <= 1) & (radius >= inner)
    if shape == "square":
        return in_box & (np.maximum(abs(u), abs(v)) >= inner)
    if shape == "plus":
        return in_box & (np.minimum(abs(u), abs(v)) <= stroke / 2)
    if shape == "cross":
        return in_box & (abs(abs(u) - abs(v)) <= stroke / np.sqrt(2))
    if shape == "diamond":
        distance = abs(u) + abs(v)
        return (distance <= 1) & (distance >= 1 - stroke * np.sqrt(2))
    if shape == "H":
        return in_box & ((abs(u) >= inner) | (abs(v) <= stroke / 2))
    if shape == "I":
        return in_box & ((abs(v) >= inner) | (abs(u) <= stroke / 2))
    # Triangle, apex up: its sides run from (0, -1) to (+-1, 1).
    to_side = (v + 1 - 2 * abs(u)) / np.sqrt(5)
    on_outline = (to_side <= stroke) | (v >= inner)
    return in_box & (to_side >= 0) & on_outline


generate = partial(write_dataset, scenes=_Shapes, class_names=CLASS_NAMES, boxes_only=BOXES_ONLY)
"""Write the dataset, see :func:`write_dataset`."""
