"""Masks, names and scores on images: pictures and a COCO-results JSON."""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from PIL import Image, ImageOps, UnidentifiedImageError

from maskx_d2.data.files import write_text
from maskx_d2.evaluation.pictures import ClassStyle, draw_detections, with_legend
from maskx_d2.hosts.detectron2.checkpoint import check_weights
from maskx_d2.hosts.detectron2.class_split import (
    check_num_classes,
    class_names,
    evaluated_classes_with_masks,
)

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
DETECTIONS_FILE = "coco_instances_results.json"


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
    cfg: CfgNode,
    images: Sequence[Path],
    output: Path,
    *,
    min_score: float = 0.5,
    progress: Callable[[Sequence[Path]], Iterable[Path]] = iter,
) -> Path:
    """
    Detect on images; draw what is found, and write all of it in COCO's results format.

    Classes are coloured by whether the split of the config (TEST.CLASS_SPLIT, else
    DATASETS.CLASSES_WITH_MASKS) gives them masks in training. ``image_id`` is the number that the file
    is named by, as in COCO, or where one is not, the image's place in the sequence; ``file_name`` is
    there too.

    Args:
        cfg: the config, with MODEL.WEIGHTS; DATASETS.TEST[0] is the dataset whose classes it knows.
        images: image files.
        output: a folder that is made if need be; pictures keep the images' names, as .png.
        min_score: detections below it are neither drawn nor written.
        progress: wraps the images, as ``tqdm`` does.

    Returns:
        The path of the JSON.
    """
    datasets = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    if not datasets:
        raise ValueError("DATASETS.TEST is empty, expected the dataset whose classes the model knows")
    dataset_name = datasets[0]
    check_num_classes(cfg, dataset_name)
    names = class_names(dataset_name)
    category_ids = _category_ids(dataset_name, len(names))
    with_masks = evaluated_classes_with_masks(cfg, dataset_name)
    style = ClassStyle(
        names={category_ids[i]: name for i, name in enumerate(names)},
        with_masks=frozenset(category_ids[i] for i in with_masks),
    )
    check_weights(cfg.MODEL.WEIGHTS)
    predictor = DefaultPredictor(cfg)
    output.mkdir(parents=True, exist_ok=True)
    results: list[dict] = []
    places = zip(_image_ids(images), _picture_paths(images, output), strict=True)
    for path, (image_id, picture_path) in zip(progress(images), places, strict=True):
        image = _read(path)
        # DefaultPredictor takes BGR, whatever the model takes.
        instances = predictor(np.asarray(image)[:, :, ::-1])["instances"].to("cpu")
        instances = instances[instances.scores >= min_score]
        found = instances_to_coco_json(instances, image_id)
        for detection in found:
            detection["category_id"] = category_ids[detection["category_id"]]
            detection["file_name"] = path.name
        results += found
        with_legend(draw_detections(image, found, style)).save(picture_path)
        logging.getLogger(__name__).info("%s: %d objects -> %s", path, len(found), picture_path)
    write_text(output / DETECTIONS_FILE, json.dumps(results))
    return output / DETECTIONS_FILE


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def _category_ids(dataset_name: str, num_classes: int) -> list[int]:
    """The dataset's own category ids, class by class."""
    to_contiguous = MetadataCatalog.get(dataset_name).get("thing_dataset_id_to_contiguous_id")
    if to_contiguous is None:
        return list(range(num_classes))
    return sorted(to_contiguous, key=to_contiguous.get)


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
