"""Masks, names and scores on images: pictures and a COCO-results JSON."""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from maskx_d2.data.files import check_keeps_inputs, check_replaceable, write_png, write_text
from maskx_d2.data.images import read_image
from maskx_d2.detector import Detector
from maskx_d2.evaluation.merging import readable_detections
from maskx_d2.evaluation.pictures import draw_detections, with_legend
from maskx_d2.evaluation.run_files import DETECTIONS_FILE

UNFINISHED_FILE = f"{DETECTIONS_FILE}l"
"""In place of :data:`DETECTIONS_FILE` until all images are done: a line with the detections of each."""

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def find_images(paths: Sequence[Path]) -> list[Path]:
    """
    The images among files and, sorted by name, in folders (not in folders below those).

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no image.
    """
    images: list[Path] = []
    for path in paths:
        if path.is_dir():
            # A pipe or a link that leads nowhere is named later, with the images that cannot be read.
            found = sorted(
                p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.is_dir()
            )
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
    passed_over: Callable[[Path, Exception], None] | None = None,
) -> Path:
    """
    Detect on images; draw what is found, and write it in COCO's results format. What is done is not lost
    if it is interrupted: pictures, and a line for each in :data:`UNFINISHED_FILE`.

    ``image_id`` is the number that the file is named by, as in COCO, or where one is not, the image's
    place in the sequence; ``file_name`` is there too.

    Args:
        detector: the model.
        images: image files.
        output: a folder that is made if need be; pictures keep the images' names, as .png.
        min_score: detections below it are neither drawn nor written.
        top, merge_iou: what is drawn, see :func:`maskx_d2.evaluation.merging.readable_detections`.
        progress: wraps the images, as ``tqdm`` does.
        passed_over: called with each image that cannot be read, and why; if None, the first ends it.

    Returns:
        The path of the JSON.

    Raises:
        FileNotFoundError, ValueError: an image cannot be read, or something is in the way of the output.
    """
    picture_paths = _picture_paths(images, output)
    check_keeps_inputs(picture_paths, images)
    output.mkdir(parents=True, exist_ok=True)
    json_path, unfinished = output / DETECTIONS_FILE, output / UNFINISHED_FILE
    for path in (json_path, unfinished, *picture_paths):
        check_replaceable(path)
    json_path.unlink(missing_ok=True)  # it is not of the pictures that will be beside it
    results: list[dict] = []
    unread: list[Exception] = []
    places = zip(_image_ids(images), picture_paths, strict=True)
    with unfinished.open("w", encoding="utf-8") as lines:
        for path, (image_id, picture_path) in zip(progress(images), places, strict=True):
            try:
                image = read_image(path)
            except (FileNotFoundError, ValueError) as error:
                if passed_over is None:
                    raise
                passed_over(path, error)
                unread.append(error)
                continue
            found = [d for d in detector.coco_results(image, image_id) if d["score"] >= min_score]
            for detection in found:
                detection["file_name"] = path.name
            results += found
            num_classes = len(detector.style.names)
            shown = readable_detections(found, num_classes, top=top, merge_iou=merge_iou)
            write_png(picture_path, with_legend(draw_detections(image, shown, detector.style)))
            print(json.dumps(found), file=lines, flush=True)
            logging.getLogger(__name__).info(
                "%s: %d objects, %d drawn -> %s", path, len(found), len(shown), picture_path
            )
    if len(unread) == len(images):
        unfinished.unlink()
        raise ValueError(f"none of {len(images)} images can be read: {unread[0]}") from unread[0]
    write_text(json_path, json.dumps(results))
    unfinished.unlink()
    return json_path


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
