"""
The generated demo dataset: outlined shapes in COCO format, with more classes than masks.

Two shapes of different colour often share nearly one box, so that only the class tells which of them
is meant: a class-agnostic mask head cannot know, and one that gets its weights from the class can.

Classes are 4 colours x 8 shapes. The classes (colour k mod 4, shape k) have boxes only, so that each
colour and each shape is seen with masks in other combinations.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from maskx_d2.data.files import write_text

IMAGE_SIDE = 128
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


@dataclass(frozen=True)
class ShapesDataset:
    """Where the parts of a generated dataset are."""

    root: Path

    @property
    def train_json(self) -> Path:
        return self.root / "annotations" / "train.json"

    @property
    def test_json(self) -> Path:
        return self.root / "annotations" / "test.json"

    @property
    def train_images(self) -> Path:
        return self.root / "train"

    @property
    def test_images(self) -> Path:
        return self.root / "test"

    @property
    def split_file(self) -> Path:
        """The names of the classes with masks, one a line."""
        return self.root / "classes_with_masks.txt"


def generate(
    root: Path,
    *,
    num_train: int = 2000,
    num_test: int = 300,
    seed: int = 0,
    progress: Callable[[range], Iterator[int]] = iter,
) -> ShapesDataset:
    """
    Write the dataset. In the training set the classes :data:`BOXES_ONLY` have no ``segmentation``; in
    the test set all have.

    Args:
        root: a folder that is made if need be.
        num_train, num_test: numbers of images.
        seed: the same seed gives the same files.
        progress: wraps the range of image numbers, as ``tqdm`` does.
    """
    dataset = ShapesDataset(root)
    for folder in (dataset.train_images, dataset.test_images, dataset.train_json.parent):
        folder.mkdir(parents=True, exist_ok=True)
    scenes = _Scenes(np.random.default_rng(seed))
    train, test = _CocoJson(), _CocoJson()
    for i in progress(range(num_train + num_test)):
        image, objects = scenes.draw()
        if i < num_train:
            train.add(image, objects, dataset.train_images, without_masks=BOXES_ONLY)
        else:
            test.add(image, objects, dataset.test_images)
    train.write(dataset.train_json)
    test.write(dataset.test_json)
    with_masks = [name for name in CLASS_NAMES if name not in BOXES_ONLY]
    write_text(dataset.split_file, "".join(f"{name}\n" for name in with_masks))
    return dataset


class _CocoJson:
    """Collects images and annotations in COCO's layout."""

    def __init__(self) -> None:
        self.images: list[dict] = []
        self.annotations: list[dict] = []

    def add(self, image, objects, folder: Path, without_masks: tuple[str, ...] = ()) -> None:
        image_id = len(self.images) + 1
        file_name = f"{image_id:06d}.png"
        Image.fromarray(image).save(folder / file_name)
        height, width = image.shape[:2]
        self.images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for class_name, mask in objects:
            rle = mask_util.encode(np.asfortranarray(mask))
            annotation = {
                "id": len(self.annotations) + 1,
                "image_id": image_id,
                "category_id": CLASS_NAMES.index(class_name) + 1,
                "bbox": mask_util.toBbox(rle).tolist(),
                "area": int(mask_util.area(rle)),
                "iscrowd": 0,
            }
            if class_name not in without_masks:
                annotation["segmentation"] = {
                    "size": rle["size"],
                    "counts": rle["counts"].decode("ascii"),
                }
            self.annotations.append(annotation)

    def write(self, path: Path) -> None:
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASS_NAMES)]
        content = {
            "images": self.images,
            "annotations": self.annotations,
            "categories": categories,
        }
        write_text(path, json.dumps(content))


class _Scenes:
    """Draws images with one or two clusters, each a shape or a pair of shapes in nearly one box."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def draw(self) -> tuple[np.ndarray, list[tuple[str, np.ndarray]]]:
        """An (H, W, 3) uint8 RGB image and, for each object, its class and visible (H, W) mask."""
        image = self._background()
        objects: list[tuple[str, np.ndarray]] = []
        for box in self._cluster_boxes():
            for class_name, mask in self._cluster(box):
                # What is drawn later hides what was drawn before.
                objects = [(name, other & ~mask) for name, other in objects]
                objects.append((class_name, mask))
                colour = np.array(COLOURS[class_name.split()[0]])
                colour = colour * self.rng.uniform(0.85, 1) + self.rng.uniform(-18, 18, 3)
                image[mask] = colour
        image += self.rng.normal(0, 10, image.shape)
        return image.clip(0, 255).astype(np.uint8), objects

    def _background(self) -> np.ndarray:
        grid = self.rng.uniform(60, 190, (4, 4, 3))
        grey = grid.mean(axis=2, keepdims=True)
        grid = (grey + 0.35 * (grid - grey)).astype(np.uint8)
        image = Image.fromarray(grid).resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC)
        return np.asarray(image, dtype=np.float64).copy()

    def _cluster_boxes(self) -> list[np.ndarray]:
        """One or two boxes (x0, y0, x1, y1) that keep their distance from the border and each other."""
        boxes: list[np.ndarray] = []
        wanted = self.rng.integers(1, 3)
        for _ in range(50):
            if len(boxes) == wanted:
                break
            width = self.rng.uniform(44, 60)
            size = np.array([width, width * self.rng.uniform(0.88, 1.14)])
            corner = self.rng.uniform(_MARGIN, IMAGE_SIDE - _MARGIN - size)
            box = np.concatenate([corner, corner + size])
            apart = all(
                (box[:2] - other[2:] > _GAP).any() or (other[:2] - box[2:] > _GAP).any() for other in boxes
            )
            if apart:
                boxes.append(box)
        return boxes

    def _cluster(self, box: np.ndarray) -> list[tuple[str, np.ndarray]]:
        colour, shape = self._other(list(COLOURS)), self._other(SHAPES)
        behind = self._mask(shape, box)
        if self.rng.random() > _PAIR_PROBABILITY:
            return [(f"{colour} {shape}", behind)]
        while True:
            # A second shape in nearly the same box, until half of the first can be seen.
            other_colour = self._other(list(COLOURS), than=colour)
            other_shape = self._other(SHAPES, than=shape)
            size = box[2:] - box[:2]
            centre = (box[:2] + box[2:]) / 2 + self.rng.uniform(-0.08, 0.08, 2) * size
            half = size * self.rng.uniform(0.9, 1.1, 2) / 2
            near_box = np.concatenate([centre - half, centre + half]).clip(1, IMAGE_SIDE - 1)
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
