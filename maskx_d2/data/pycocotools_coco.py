"""Annotation files as pycocotools' ``COCO``."""

import contextlib
import io
from pathlib import Path

import pycocotools.mask as mask_util
from pycocotools.coco import COCO

from maskx_d2.data.coco_file import read_json, records_of
from maskx_d2.data.coco_format import Annotation, Image, category_names, in_order
from maskx_d2.data.rle import compressed
from maskx_d2.data.usable_objects import drop_repeated, is_possible_area


def read_coco(path: Path) -> COCO:
    """
    Read and check an annotation file for evaluation; see :func:`coco_of`.

    Raises:
        FileNotFoundError, InputError: see :func:`maskx_d2.data.coco_file.read_coco_file`.
    """
    return coco_of(read_json(path), path)


def coco_of(content: dict, path: Path, *, keep_repeated: bool = False) -> COCO:
    """
    The annotations that :func:`read_coco_file` keeps, with what pycocotools needs: ``iscrowd``, an ``area``
    (of the mask, or else of the box) in place of one that is missing or impossible, and ids above 0:
    its evaluation takes 0 for "none", and Detectron2's refuses negative ones.

    Args:
        content: of an annotation file; it is not changed.
        path: path of the file, for error messages.
        keep_repeated: whether objects that are listed twice are kept.

    Raises:
        InputError: see :func:`maskx_d2.data.coco_file.read_coco_file`.
    """
    file = records_of(content, path)
    if not keep_repeated:
        drop_repeated(file)
    images = {image.id: image for image in file.images}
    records = {record["id"]: record for record in content["annotations"]}
    renumber = min(records, default=1) < 1
    annotations = []
    for annotation in file.annotations:
        record = {
            **records[annotation.id],
            "category_id": annotation.category_id,
            "segmentation": annotation.segmentation,
            "iscrowd": int(bool(annotation.iscrowd)),
        }
        if not is_possible_area(annotation):
            record["area"] = _area(annotation, images[annotation.image_id])
        if not annotation.segmentation:
            del record["segmentation"]
        if renumber:
            record["id"] = 1 + len(annotations)
        annotations.append(record)
    return index_coco(
        {
            **content,
            "images": [{**r, "file_name": images[r["id"]].file_name} for r in content["images"]],
            "annotations": annotations,
            "categories": file.categories,
        }
    )


def _area(annotation: Annotation, image: Image) -> float:
    if annotation.segmentation:
        return float(mask_util.area(compressed(annotation.segmentation, image.height, image.width)))
    return annotation.bbox[2] * annotation.bbox[3]


def index_coco(content: dict) -> COCO:
    """pycocotools' ``COCO`` of the content of an annotation file."""
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def ignored_without_mask(annotation: dict, image: dict) -> dict:
    """
    Ground truth for the evaluation of masks: an instance without a mask becomes a crowd region, its box.
    What is detected there is neither right nor wrong, and a class that has nothing else has no AP.

    Args:
        annotation: returned as it is, if it has a mask.
        image: that it is of.
    """
    if annotation.get("segmentation"):
        return annotation
    x, y, width, height = annotation["bbox"]
    # pycocotools takes memory for each pixel of an outline, outside of the image too.
    x0, x1 = (min(max(value, 0), image["width"]) for value in (x, x + width))
    y0, y1 = (min(max(value, 0), image["height"]) for value in (y, y + height))
    return {**annotation, "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]], "iscrowd": 1}


def class_names(coco: COCO) -> list[str]:
    """:func:`category_names` of an annotation file."""
    return category_names(in_order(coco.cats.values()))


def instance_counts(coco: COCO) -> list[int] | None:
    """
    How many training instances each category has, in the same order, where all categories say so by
    ``instance_count``, as those of LVIS and of :mod:`maskx_d2.data.visual_genome` do; else None.
    """
    counts = [category.get("instance_count") for category in in_order(coco.cats.values())]
    return None if None in counts else counts
