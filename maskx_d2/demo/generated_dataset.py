"""Generates datasets in COCO's format, in which some classes have no masks in the training set."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from maskx_d2.data.files import write_png, write_text
from maskx_d2.data.rle import encode

IMAGE_SIDE = 128

Scene = tuple[np.ndarray, list[tuple[str, np.ndarray]]]
"""An (H, W, 3) uint8 RGB image and, for each object, its class and visible (H, W) bool mask."""


@dataclass(frozen=True)
class GeneratedDataset:
    """The paths of a generated dataset."""

    root: Path

    @property
    def train_json(self) -> Path:
        """Training annotations, in which the classes of B have only boxes."""
        return self.root / "annotations" / "train.json"

    @property
    def all_masks_json(self) -> Path:
        """The same annotations with the masks of all classes, for an oracle."""
        return self.root / "annotations" / "train_all_masks.json"

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
        """The names of the classes with masks, one per line."""
        return self.root / "classes_with_masks.txt"


class Scenes(ABC):
    """Draws images of clusters. A cluster is one object, or a few in nearly the same box."""

    noise: float
    """Standard deviation of the camera noise, in grey levels."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def draw(self) -> Scene:
        """The next image."""
        image = smooth_background(self.rng, IMAGE_SIDE)
        objects: list[tuple[str, np.ndarray]] = []
        for box in self.boxes():
            for class_name, mask in self.cluster(box):
                # Later objects hide earlier ones.
                objects = [(name, other & ~mask) for name, other in objects]
                objects.append((class_name, mask))
                image[mask] = self.pixels(class_name, mask)
        image += self.rng.normal(0, self.noise, image.shape)
        return image.clip(0, 255).astype(np.uint8), objects

    @abstractmethod
    def boxes(self) -> list[np.ndarray]:
        """(x0, y0, x1, y1) of the clusters of an image."""

    @abstractmethod
    def cluster(self, box: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """Class and (H, W) bool mask of each object in a box; the last is in front."""

    @abstractmethod
    def pixels(self, class_name: str, mask: np.ndarray) -> np.ndarray:
        """Colours of an object, (3,) or (number of pixels, 3)."""


def write_dataset(
    root: Path,
    *,
    scenes: type[Scenes],
    class_names: Sequence[str],
    boxes_only: Collection[str],
    num_train: int = 2000,
    num_test: int = 300,
    seed: int = 0,
    progress: Callable[[range], Iterator[int]] = iter,
) -> GeneratedDataset:
    """
    Write a dataset.

    Args:
        root: output folder, created if necessary.
        scenes: draws the images.
        class_names: names of all classes.
        boxes_only: classes without ``segmentation`` in ``train.json``; in the test set all classes have it.
        num_train, num_test: numbers of images.
        seed: the same seed gives the same files.
        progress: wraps the range of image numbers, as ``tqdm`` does.
    """
    draw = scenes(np.random.default_rng(seed)).draw
    dataset = GeneratedDataset(root)
    for folder in (dataset.train_images, dataset.test_images, dataset.train_json.parent):
        folder.mkdir(parents=True, exist_ok=True)
    train, test = _CocoJson(class_names), _CocoJson(class_names)
    for i in progress(range(num_train + num_test)):
        image, objects = draw()
        if i < num_train:
            train.add(image, objects, dataset.train_images)
        else:
            test.add(image, objects, dataset.test_images)
    train.write(dataset.train_json, without_masks=boxes_only)
    train.write(dataset.all_masks_json)
    test.write(dataset.test_json)
    with_masks = [name for name in class_names if name not in boxes_only]
    write_text(dataset.split_file, "".join(f"{name}\n" for name in with_masks))
    return dataset


class _CocoJson:
    """Collects images and annotations in COCO's layout."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self.category_ids = {name: i + 1 for i, name in enumerate(class_names)}
        self.images: list[dict] = []
        self.annotations: list[dict] = []

    def add(self, image: np.ndarray, objects: list[tuple[str, np.ndarray]], folder: Path) -> None:
        image_id = len(self.images) + 1
        file_name = f"{image_id:06d}.png"
        write_png(folder / file_name, Image.fromarray(image))
        height, width = image.shape[:2]
        self.images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for class_name, mask in objects:
            rle = encode(mask)
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,
                    "image_id": image_id,
                    "category_id": self.category_ids[class_name],
                    "bbox": mask_util.toBbox(rle).tolist(),
                    "area": int(mask_util.area(rle)),
                    "iscrowd": 0,
                    "segmentation": rle,
                }
            )

    def write(self, path: Path, without_masks: Collection[str] = ()) -> None:
        box_only = {self.category_ids[name] for name in without_masks}
        content = {
            "images": self.images,
            "annotations": [
                {k: v for k, v in a.items() if k != "segmentation" or a["category_id"] not in box_only}
                for a in self.annotations
            ],
            "categories": [{"id": i, "name": name} for name, i in self.category_ids.items()],
        }
        write_text(path, json.dumps(content))


def smooth_background(rng: np.random.Generator, side: int) -> np.ndarray:
    """(side, side, 3) float64: greyish colours that change slowly."""
    grid = rng.uniform(60, 190, (4, 4, 3))
    grey = grid.mean(axis=2, keepdims=True)
    grid = (grey + 0.35 * (grid - grey)).astype(np.uint8)
    image = Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.float64).copy()


def boxes_apart(
    rng: np.random.Generator,
    side: int,
    *,
    count: int,
    sides: tuple[float, float],
    margin: float,
    gap: float,
) -> list[np.ndarray]:
    """
    Up to ``count`` boxes (x0, y0, x1, y1), nearly square, in an image of (side, side) pixels.

    Args:
        sides: smallest and largest width.
        margin: pixels to the border of the image.
        gap: pixels between them.
    """
    boxes: list[np.ndarray] = []
    for _ in range(50):
        if len(boxes) == count:
            break
        width = rng.uniform(*sides)
        size = np.array([width, width * rng.uniform(0.88, 1.14)])
        corner = rng.uniform(margin, side - margin - size)
        box = np.concatenate([corner, corner + size])
        apart = all(
            (box[:2] - other[2:] > gap).any() or (other[:2] - box[2:] > gap).any() for other in boxes
        )
        if apart:
            boxes.append(box)
    return boxes


def nearly_the_same_box(rng: np.random.Generator, box: np.ndarray, side: int) -> np.ndarray:
    """A random box that nearly coincides with ``box``, in an image of (side, side) pixels."""
    size = box[2:] - box[:2]
    centre = (box[:2] + box[2:]) / 2 + rng.uniform(-0.08, 0.08, 2) * size
    half = size * rng.uniform(0.9, 1.1, 2) / 2
    return np.concatenate([centre - half, centre + half]).clip(1, side - 1)
