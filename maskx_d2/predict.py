"""Masks, names and scores on images: pictures and a COCO-results JSON."""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image

from maskx_d2.data.files import write_text
from maskx_d2.data.images import read_image
from maskx_d2.evaluation.merging import readable_detections
from maskx_d2.evaluation.pictures import ClassStyle, draw_detections, with_legend
from maskx_d2.evaluation.run_files import DETECTIONS_FILE

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class Detector(Protocol):
    """A model of any host."""

    style: ClassStyle
    """Its classes. A is what the split that evaluation reports on gives masks in training."""

    def detect(self, image: Image.Image, image_id: int) -> list[dict]:
        """All detections in an RGB image, in COCO's results format."""


def find_images(paths: Sequence[Path]) -> list[Path]:
    """
    The images among files and, sorted by name, in folders (not in folders below those).

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no image.
    """
    images: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise FileNotFoundError(
                    f"{path} holds no image, expected files ending in {', '.join(IMAGE_SUFFIXES)}"
                )
            images += found
        elif path.is_file():
            images.append(path)
        else:
            raise FileNotFoundError(f"{path} is neither an image nor a folder")
    return images


def predict(
    detector: Detector,
    images: Sequence[Path],
    output: Path,
    *,
    min_score: float = 0.5,
    top: int | None = None,
    merge_iou: float | None = None,
    progress: Callable[[Sequence[Path]], Iterable[Path]] = iter,
) -> Path:
    """
    Detect on images; draw what is found, and write it in COCO's results format.

    ``image_id`` is the number that the file is named by, as in COCO, or where one is not, the image's
    place in the sequence; ``file_name`` is there too.

    Args:
        detector: the model.
        images: image files.
        output: a folder that is made if need be; pictures keep the images' names, as .png.
        min_score: detections below it are neither drawn nor written.
        top, merge_iou: what is drawn, see :func:`maskx_d2.evaluation.merging.readable_detections`.
        progress: wraps the images, as ``tqdm`` does.

    Returns:
        The path of the JSON.
    """
    picture_paths = _picture_paths(images, output)
    overwritten = {path.resolve() for path in images} & {path.resolve() for path in picture_paths}
    if overwritten:
        raise ValueError(f"the picture of {min(overwritten)} would overwrite it: give another --output")
    output.mkdir(parents=True, exist_ok=True)
    results: list[dict] = []
    places = zip(_image_ids(images), picture_paths, strict=True)
    for path, (image_id, picture_path) in zip(progress(images), places, strict=True):
        image = read_image(path)
        found = [d for d in detector.detect(image, image_id) if d["score"] >= min_score]
        for detection in found:
            detection["file_name"] = path.name
        results += found
        num_classes = len(detector.style.names)
        shown = readable_detections(found, num_classes, top=top, merge_iou=merge_iou)
        with_legend(draw_detections(image, shown, detector.style)).save(picture_path)
        logging.getLogger(__name__).info(
            "%s: %d objects, %d drawn -> %s", path, len(found), len(shown), picture_path
        )
    write_text(output / DETECTIONS_FILE, json.dumps(results))
    return output / DETECTIONS_FILE


def _image_ids(images: Sequence[Path]) -> list[int]:
    numbers = [int(path.stem) if path.stem.isdecimal() else None for path in images]
    if None in numbers or len(set(numbers)) < len(numbers):
        return list(range(1, len(images) + 1))
    return numbers


def _picture_paths(images: Sequence[Path], output: Path) -> list[Path]:
    """A name for each picture; images of one name from several folders get a number."""
    taken: set[str] = set()
    paths = []
    for path in images:
        name, count = path.stem, 1
        while name in taken:
            count += 1
            name = f"{path.stem}_{count}"
        taken.add(name)
        paths.append(output / f"{name}.png")
    return paths
