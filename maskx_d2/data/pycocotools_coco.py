"""Annotation files as pycocotools' ``COCO``, with what people leave out filled in."""

import contextlib
import io
from collections.abc import Iterable
from pathlib import Path

import pycocotools.mask as mask_util
from pycocotools.coco import COCO

from maskx_d2.data.coco_file import read_checked_json
from maskx_d2.data.coco_format import category_names, in_order, polygons_with_area


def read_coco(path: Path) -> COCO:
    """
    Read and check an annotation file, and put in order what :func:`complete_annotations` does.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_checked_json`.
    """
    coco = index_coco(read_checked_json(path))
    complete_annotations(coco)
    return coco


def index_coco(content: dict) -> COCO:
    """pycocotools' ``COCO`` of the content of an annotation file."""
    coco = COCO()
    coco.dataset = content
    _create_index(coco)
    return coco


def _create_index(coco: COCO) -> None:
    """Without its printing."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()


def drop_degenerate_polygons(annotations: Iterable[dict]) -> int:
    """
    Take polygons of fewer than three points out of annotations, in place. One of which nothing is left
    keeps its box.

    Returns:
        How many annotations were changed.
    """
    changed = 0
    for annotation in annotations:
        polygons = annotation.get("segmentation")
        if not isinstance(polygons, list):
            continue
        kept = polygons_with_area(polygons)
        if len(kept) < len(polygons):
            annotation["segmentation"] = kept
            changed += 1
    return changed


def complete_annotations(coco: COCO) -> None:
    """
    In place, what pycocotools needs: no polygons of fewer than three points, ``iscrowd`` and ``area`` (of
    the mask, or else of the box) where they are not given, and no annotation with the id 0, which its
    evaluation takes for "none".
    """
    annotations = coco.dataset["annotations"]
    drop_degenerate_polygons(annotations)
    if any(annotation["id"] == 0 for annotation in annotations):
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number
        _create_index(coco)
    for annotation in annotations:
        if annotation.get("iscrowd") is None:
            annotation["iscrowd"] = 0
        if annotation.get("area") is None:
            if annotation.get("segmentation"):
                annotation["area"] = float(mask_util.area(coco.annToRLE(annotation)))
            else:
                annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]


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
