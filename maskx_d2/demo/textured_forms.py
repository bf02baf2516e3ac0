"""
A second generated dataset: textured forms of any colour and many sizes. It shows whether findings on the
first one (:mod:`maskx_d2.demo.shapes`) hold on other data.

Classes are 6 forms x 5 textures; colours say nothing about the class. A third of the classes have boxes
only; each form and each texture occurs among them. As in the first dataset, two objects often have almost
the same box.
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

FORMS = ("crescent", "arch", "comb", "zigzag", "bow", "star")
TEXTURES = ("plain", "striped", "barred", "checked", "dotted")
CLASS_NAMES = tuple(f"{texture} {form}" for texture in TEXTURES for form in FORMS)
BOXES_ONLY = tuple(
    f"{texture} {form}"
    for j, texture in enumerate(TEXTURES)
    for i, form in enumerate(FORMS)
    if (i + 2 * j) % 3 == 0
)

_PAIR_PROBABILITY = 0.5
_PERIOD = 8  # pixels from stripe to stripe
_DARK = 0.45


class _TexturedForms(Scenes):
    """One to three clusters, each an object or a pair of objects in nearly the same box."""

    noise = 8

    def boxes(self) -> list[np.ndarray]:
        return boxes_apart(
            self.rng, IMAGE_SIDE, count=self.rng.integers(1, 4), sides=(30, 76), margin=3, gap=4
        )

    def pixels(self, class_name: str, mask: np.ndarray) -> np.ndarray:
        # Any colour, as long as it is bright enough for a texture to be seen.
        colour = self.rng.uniform(0, 255, 3)
        colour *= 230 / max(colour.max(), 1)
        shade = _texture(class_name.split()[0], self.rng.uniform(0, _PERIOD, 2))
        return colour * shade[mask][:, None]

    def cluster(self, box: np.ndarray) -> list[tuple[str, np.ndarray]]:
        name, form = self._class()
        behind = _form(form, box, stroke=self.rng.uniform(0.42, 0.54))
        if self.rng.random() > _PAIR_PROBABILITY:
            return [(name, behind)]
        while True:
            # Draw a second one in nearly the same box until at least half of the first is visible.
            other_name, other_form = self._class()
            near_box = nearly_the_same_box(self.rng, box, IMAGE_SIDE)
            before = _form(other_form, near_box, stroke=self.rng.uniform(0.42, 0.54))
            if other_name != name and (behind & ~before).sum() >= behind.sum() / 2:
                return [(name, behind), (other_name, before)]

    def _class(self) -> tuple[str, str]:
        name = str(self.rng.choice(CLASS_NAMES))
        return name, name.split()[1]


def _form(form: str, box: np.ndarray, stroke: float) -> np.ndarray:
    """(H, W) bool mask of a form that fills a box; strokes in units of half its side."""
    x0, y0, x1, y1 = box
    pixels = np.arange(IMAGE_SIDE) + 0.5
    # Coordinates in which the box is [-1, 1] x [-1, 1].
    u = ((pixels - x0) / (x1 - x0) * 2 - 1)[None, :]
    v = ((pixels - y0) / (y1 - y0) * 2 - 1)[:, None]
    in_box = (abs(u) <= 1) & (abs(v) <= 1)
    if form == "crescent":
        return (np.hypot(u, v) <= 1) & (np.hypot(u - stroke, v) >= 1 - stroke / 2)
    if form == "arch":
        return in_box & ((abs(u) >= 1 - stroke) | (v <= stroke - 1))
    if form == "comb":
        return in_box & ((u <= stroke - 1) | (abs(v) >= 1 - stroke / 1.5) | (abs(v) <= stroke / 3))
    if form == "zigzag":
        return in_box & ((abs(v) >= 1 - stroke / 1.5) | (abs(u + v) <= stroke))
    if form == "bow":
        return in_box & (abs(v) <= abs(u))
    # A star of five points, one of them up.
    angle = np.arctan2(u, -v)
    return np.hypot(u, v) <= stroke + (1 - stroke) * np.cos(2.5 * angle) ** 2


def _texture(texture: str, shift: np.ndarray) -> np.ndarray:
    """(H, W) brightness."""
    pixels = np.arange(IMAGE_SIDE)
    across = ((pixels + shift[0]) % _PERIOD < _PERIOD / 2)[None, :]
    down = ((pixels + shift[1]) % _PERIOD < _PERIOD / 2)[:, None]
    everywhere = np.ones((IMAGE_SIDE, IMAGE_SIDE), dtype=bool)
    bright = {
        "plain": everywhere,
        "striped": across & everywhere,
        "barred": down & everywhere,
        "checked": across ^ down,
        "dotted": ~(across & down),
    }[texture]
    return np.where(bright, 1.0, _DARK)


generate = partial(write_dataset, scenes=_TexturedForms, class_names=CLASS_NAMES, boxes_only=BOXES_ONLY)
"""Write the dataset, see :func:`write_dataset`."""
