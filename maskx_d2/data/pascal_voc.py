"""PASCAL VOC in COCO's format: boxes of all images, and the instance masks of those that have them."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from maskx_d2.data.errors import InputError, MissingFileError
from maskx_d2.data.files import write_json
from maskx_d2.data.images import open_image
from maskx_d2.data.rle import encode

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
    "tvmonitor",
)
"""In the order of the indices in ``SegmentationClass``, which start at 1."""

TRAIN_FILE, VAL_FILE = "voc_train.json", "voc_val.json"
_VOID = 255
_MIN_IOU = 0.3  # of the boxes of a mask and of its object


def convert_pascal_voc(
    root: Path,
    output: Path,
    *,
    progress: Callable[..., Iterable[str]] = lambda names, desc: names,
) -> str:
    """
    Write ``voc_val.json``, the images of the segmentation task's ``val`` with masks, and
    ``voc_train.json``, all other images of ``trainval`` with boxes, and with masks where there are any.
    Difficult objects are crowd regions, which are ignored in training and evaluation. The void pixels
    around objects belong to no mask.

    Args:
        root: the folder ``VOC2012``, with ``Annotations``, ``ImageSets``, ``JPEGImages``,
            ``SegmentationClass`` and ``SegmentationObject``.
        output: folder to write to.
        progress: wraps the names of the images of a file, as ``tqdm`` does; ``desc`` is the file.

    Returns:
        A summary.

    Raises:
        FileNotFoundError: a file or folder of VOC does not exist.
        InputError: one is not as VOC's are.
    """
    for name in ("Annotations", "ImageSets", "JPEGImages", "SegmentationClass", "SegmentationObject"):
        if not (root / name).is_dir():
            raise MissingFileError(f"{root} has no folder {name}, expected PASCAL VOC as it is downloaded")
    with_masks = _names(root / "ImageSets" / "Segmentation" / "val.txt")
    others = set(_names(root / "ImageSets" / "Main" / "trainval.txt"))
    others |= set(_names(root / "ImageSets" / "Segmentation" / "train.txt"))
    of_files = {TRAIN_FILE: sorted(others - set(with_masks)), VAL_FILE: sorted(with_masks)}
    contents = {file: _coco(root, progress(names, desc=file)) for file, names in of_files.items()}
    output.mkdir(parents=True, exist_ok=True)
    lines = []
    for file, content in contents.items():
        write_json(output / file, content)
        objects = content["annotations"]
        masks = sum("segmentation" in record for record in objects)
        count = f"{len(content['images'])} images, {len(objects)} objects, {masks} with a mask"
        lines.append(f"{output / file}: {count}")
    return "\n".join([*lines, f"The images are in {root / 'JPEGImages'}"])


def _names(path: Path) -> list[str]:
    if not path.is_file():
        raise MissingFileError(f"{path} is not a file, expected a list of images of PASCAL VOC")
    return [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _coco(root: Path, names: Iterable[str]) -> dict:
    images, annotations = [], []
    for image_id, name in enumerate(names, start=1):
        picture = root / "JPEGImages" / f"{name}.jpg"
        with open_image(picture) as image:
            width, height = image.size
        images.append({"id": image_id, "file_name": picture.name, "width": width, "height": height})
        objects = _objects(root / "Annotations" / f"{name}.xml")
        for index, mask in _masks(root, name, objects, (height, width)).items():
            objects[index] |= {"segmentation": encode(mask), "area": int(mask.sum())}
        for record in objects:
            annotations.append({"id": 1 + len(annotations), "image_id": image_id, **record})
    categories = [{"id": i, "name": name} for i, name in enumerate(VOC_CLASSES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _objects(path: Path) -> list[dict]:
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, parse

    if not path.is_file():
        raise MissingFileError(f"{path} is not a file, expected the annotations of an image")
    try:
        root = parse(path).getroot()
        return [_object(element) for element in root.iter("object")]
    except (ParseError, DefusedXmlException, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not an annotation file of PASCAL VOC: {error}") from error


def _object(element: Element) -> dict:
    name = element.findtext("name", "").strip()
    if name not in VOC_CLASSES:
        raise ValueError(f"an object is a {name!r}, expected one of VOC's 20 classes")
    box = element.find("bndbox")
    # Pixels are counted from 1, and the last one belongs to the box.
    x0, y0, x1, y1 = (float(box.findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax"))
    width, height = x1 - x0 + 1, y1 - y0 + 1
    return {
        "category_id": 1 + VOC_CLASSES.index(name),
        "bbox": [x0 - 1, y0 - 1, width, height],
        "area": width * height,
        "iscrowd": int(element.findtext("difficult", "0").strip() == "1"),
    }


def _masks(root: Path, name: str, objects: list[dict], size: tuple[int, int]) -> dict[int, np.ndarray]:
    """
    The masks of an image by the index of their object: the one of the mask's class whose box fits best.
    """
    if not (root / "SegmentationObject" / f"{name}.png").is_file():
        return {}
    instances, classes = (
        _indices(root / folder / f"{name}.png", size)
        for folder in ("SegmentationObject", "SegmentationClass")
    )
    pairs = []
    masks = {number: instances == number for number in np.unique(instances).tolist()}
    for number, mask in masks.items():
        if number in (0, _VOID):
            continue
        category_id = int(np.bincount(classes[mask]).argmax())
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
        pairs += [
            (_iou(box, record["bbox"]), number, index)
            for index, record in enumerate(objects)
            if record["category_id"] == category_id
        ]
    found: dict[int, np.ndarray] = {}
    used = set()
    for overlap, number, index in sorted(pairs, reverse=True):
        if overlap >= _MIN_IOU and number not in used and index not in found:
            found[index] = masks[number]
            used.add(number)
    return found


def _indices(path: Path, size: tuple[int, int]) -> np.ndarray:
    """(height, width) palette indices."""
    if not path.is_file():
        raise MissingFileError(f"{path} is not a file, expected the classes of the objects with masks")
    with open_image(path) as image:
        if image.mode not in ("P", "L") or (image.height, image.width) != size:
            raise InputError(
                f"{path} has {image.width} x {image.height} pixels in mode {image.mode}, expected "
                f"{size[1]} x {size[0]} with a palette"
            )
        return np.asarray(image)


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    """IoU of two boxes, XYWH."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    overlap = max(width, 0) * max(height, 0)
    return overlap / (a[2] * a[3] + b[2] * b[3] - overlap)
