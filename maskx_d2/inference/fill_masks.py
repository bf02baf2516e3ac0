"""Predicts masks for annotations that have a box and a class but no mask; writes the completed file."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import pycocotools.mask as mask_util
from tabulate import tabulate

from maskx_d2.data.addresses import file_in, is_address
from maskx_d2.data.coco_errors import measure
from maskx_d2.data.coco_file import read_json, records_of
from maskx_d2.data.coco_format import CocoFile, Image
from maskx_d2.data.errors import InputError, MissingFileError
from maskx_d2.data.files import check_keeps_inputs, check_replaceable, file_digest, write_text
from maskx_d2.data.polygons import to_polygons
from maskx_d2.data.printable import printable
from maskx_d2.data.rle import check_rle, compressed
from maskx_d2.data.usable_objects import rectangle_classes
from maskx_d2.evaluation.pictures import ClassStyle
from maskx_d2.inference.detector import KnownObjects, MaskPredictor, PredictedMask
from maskx_d2.inference.masks_in_boxes import BoxesOfImage, FoundMasks, UnreadImage, find_masks
from maskx_d2.runtime.journal import open_journal

FORMATS = ("rle", "polygon")
FindMasks = Callable[[MaskPredictor, list[BoxesOfImage]], Iterable[FoundMasks | UnreadImage]]


@dataclass
class Filled:
    """The result of :func:`fill_masks`."""

    num_filled: int = 0
    left: Counter[str] = field(default_factory=Counter)
    """Reason -> number of annotations that were left unchanged."""

    passed_over: list[str] = field(default_factory=list)
    """The reasons why images could not be read."""

    overlaps: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Class -> IoUs of existing masks with the predicted ones."""


def fill_masks(
    predictor: MaskPredictor,
    annotations: Path,
    images: Path | str,
    output: Path,
    *,
    model: object,
    form: str = "rle",
    min_score: float = 0.0,
    also_replace: bool = False,
    replace_rectangles: bool = False,
    find_masks: FindMasks = find_masks,
) -> Filled:
    """
    Predict a mask for every annotation that has none, in its box and for its class. Everything else in the
    file stays as it is. New masks have ``segmentation_source``, "predicted" by a trained model or
    "teacher", and ``mask_score``, see :class:`maskx_d2.inference.detector.PredictedMask`.

    If it is killed and started again, it continues where it was, using a file beside the output.

    Args:
        predictor: the model; its classes, if it knows any, are matched by name.
        annotations: annotation file in COCO format.
        images: the folder of its images; with Ray's ``find_masks`` it can also be an address.
        output: the annotation file to write.
        model: JSON values that identify the model.
        form: ``"rle"`` or ``"polygon"``, see :func:`maskx_d2.data.polygons.to_polygons`.
        min_score: annotations whose mask would have a lower score are left without one.
        also_replace: also predict masks for annotations that have one, and measure how well both agree.
        replace_rectangles: also predict masks for classes all of whose masks are rectangles.
        find_masks: :func:`maskx_d2.inference.masks_in_boxes.find_masks` or
            :func:`maskx_d2.inference.ray_data.find_masks_on_ray`, with their options.

    Raises:
        FileNotFoundError, ValueError: a file is missing or invalid, or the model knows none of its classes.
    """
    check_keeps_inputs([output], [annotations])
    check_replaceable(output)
    if not is_address(images) and not Path(images).is_dir():
        raise MissingFileError(f"image folder {images} is not a folder")
    content = read_json(annotations)
    file = records_of(content, annotations)
    if replace_rectangles:
        _remove_rectangles(file)
    filled = Filled()
    categories = _model_categories(file, predictor.style)
    wanted = _wanted(content, file, categories, filled, also_replace=also_replace)
    output.parent.mkdir(parents=True, exist_ok=True)
    journal_path = output.with_name(f"{output.name}.unfinished")
    work = {"annotations": file_digest(annotations), "model": model, "also_replace": also_replace}
    if replace_rectangles:
        work["replace_rectangles"] = True
    with open_journal(journal_path, work=work, kind=FoundMasks) as journal:
        masks: dict[int, PredictedMask | None] = {}
        for done in journal.done:
            if twice := masks.keys() & done.masks.keys():
                raise InputError(f"{journal.path} has masks of annotation {min(twice)} twice: delete it")
            masks |= _checked(done, wanted, journal.path)
        todo = [o for o in wanted.values() if o.annotation["id"] not in masks]
        of_images = _by_image(todo, str(images))
        for found in find_masks(predictor, of_images) if of_images else ():
            if isinstance(found, UnreadImage):
                filled.passed_over.append(found.reason)
                filled.left["annotations of images that cannot be read"] += found.num_objects
            else:
                journal.append(found)
                masks |= found.masks
        if not masks and of_images and len(filled.passed_over) == len(of_images):
            raise InputError(f"none of {len(of_images)} images can be read: {filled.passed_over[0]}")
        if also_replace:
            _measure(masks, wanted, filled)
        _write_into(wanted, masks, filled, source=predictor.source, form=form, min_score=min_score)
        write_text(output, json.dumps(content))
        journal.delete()
    return filled


@dataclass(frozen=True)
class _Object:
    """An annotation that gets a mask."""

    annotation: dict
    """As in the file."""

    image: Image
    mask: list | Mapping | None
    """The mask that there is."""

    class_name: str
    category_id: int
    """Category id of the model."""

    box: list[float]
    """x0, y0, x1, y1, within the image."""


def _remove_rectangles(file: CocoFile) -> None:
    found = rectangle_classes(file, measure(file))
    for annotation in file.annotations:
        if annotation.category_id in found and not annotation.iscrowd:
            annotation.segmentation = None


def _model_categories(file: CocoFile, style: ClassStyle | None) -> dict[int, int]:
    """Category id of the file -> category id of the model, for the classes that have a mask by it."""
    if style is None:
        return {category["id"]: category["id"] for category in file.categories}
    of_model = {name: category_id for category_id, name in style.names.items()}
    names = file.class_names
    pairs = zip(file.categories, names, strict=True)
    known = {category["id"]: of_model[name] for category, name in pairs if name in of_model}
    if not known:
        raise InputError(
            f"the model knows no category of the annotation file: its classes are {_few(of_model)}, "
            f"the file's {_few(names)}"
        )
    return known


def _few(names: Iterable[str], number: int = 3) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:number])) + (", ..." if len(names) > number else "")


def _wanted(
    content: dict, file: CocoFile, categories: dict[int, int], filled: Filled, *, also_replace: bool
) -> dict[int, _Object]:
    """The annotations that get a mask, by id; the others are counted."""
    images = {image.id: image for image in file.images}
    used = {annotation.id: annotation for annotation in file.annotations}
    names = {category["id"]: name for category, name in zip(file.categories, file.class_names, strict=True)}
    wanted = {}
    for record in content["annotations"]:
        annotation = used.get(record["id"])
        if annotation is None:
            filled.left["boxes without area in the image"] += not record.get("segmentation") or also_replace
        elif annotation.iscrowd:
            filled.left["crowd regions"] += annotation.mask is None or also_replace
        elif annotation.mask is not None and not also_replace:
            continue
        elif annotation.category_id not in categories:
            filled.left["annotations of classes that the model does not know"] += 1
        else:
            image, (x, y, width, height) = images[annotation.image_id], annotation.bbox
            box = [max(x, 0), max(y, 0), min(x + width, image.width), min(y + height, image.height)]
            wanted[annotation.id] = _Object(
                record,
                image,
                annotation.mask,
                names[annotation.category_id],
                categories[annotation.category_id],
                [float(side) for side in box],
            )
    return wanted


def _checked(
    done: FoundMasks, wanted: dict[int, _Object], journal: Path
) -> dict[int, PredictedMask | None]:
    for annotation_id, mask in done.masks.items():
        if annotation_id not in wanted:
            raise InputError(
                f"{journal} has a mask of annotation {annotation_id}, which needs none: delete it"
            )
        if mask is not None:
            if not 0 <= mask.score <= 1:
                raise InputError(f"{journal} has a mask of score {mask.score}, expected 0 to 1: delete it")
            check_rle(mask.rle)
            image = wanted[annotation_id].image
            if mask.rle["size"] != [image.height, image.width]:
                raise InputError(f"{journal} has a mask whose size is not that of its image: delete it")
    return done.masks


def _by_image(objects: Iterable[_Object], folder: str) -> list[BoxesOfImage]:
    of_images: dict[int, list[_Object]] = defaultdict(list)
    for known in objects:
        of_images[known.image.id].append(known)
    return [
        BoxesOfImage(
            path=file_in(folder, of_image[0].image.file_name),
            width=of_image[0].image.width,
            height=of_image[0].image.height,
            annotation_ids=[known.annotation["id"] for known in of_image],
            objects=KnownObjects([k.box for k in of_image], [k.category_id for k in of_image]),
        )
        for of_image in of_images.values()
    ]


def _measure(masks: dict[int, PredictedMask | None], wanted: dict[int, _Object], filled: Filled) -> None:
    """Measure how well the predicted masks agree with the existing ones."""
    for annotation_id, mask in masks.items():
        known = wanted[annotation_id]
        if known.mask is not None:
            truth = compressed(known.mask, known.image.height, known.image.width)
            overlap = 0.0 if mask is None else mask_util.iou([mask.rle], [truth], [0]).item()
            filled.overlaps[known.class_name].append(overlap)


def _write_into(
    wanted: dict[int, _Object],
    masks: dict[int, PredictedMask | None],
    filled: Filled,
    *,
    source: str,
    form: str,
    min_score: float,
) -> None:
    for annotation_id, mask in masks.items():
        annotation = wanted[annotation_id].annotation
        if mask is None or mask_util.area(mask.rle) == 0:
            filled.left["annotations whose predicted mask has no pixel"] += 1
        elif mask.score < min_score:
            filled.left[f"annotations whose predicted mask has a score below {min_score:g}"] += 1
        else:
            annotation["segmentation"] = mask.rle if form == "rle" else to_polygons(mask.rle)
            annotation["segmentation_source"] = source
            annotation["mask_score"] = round(mask.score, 4)
            filled.num_filled += 1


def summary(filled: Filled, style: ClassStyle | None) -> str:
    """
    A summary for users.

    Args:
        filled: what was done.
        style: of the model.
    """
    lines = [f"{filled.num_filled:,} masks are filled in"]
    lines += [f"  {count:,} {reason} are left unchanged" for reason, count in filled.left.items()]
    if filled.overlaps:
        lines += ["", _agreement(filled.overlaps, style)]
    return "\n".join(lines)


def _agreement(overlaps: dict[str, list[float]], style: ClassStyle | None) -> str:
    """Mean IoU with the existing masks: of all, of each side of the split, and of each class."""
    if style is None:
        sides = dict.fromkeys(overlaps, "all classes")
    else:
        with_masks = {style.names[category_id] for category_id in style.with_masks}
        titles = {True: "A: trained with masks", False: "B: trained with boxes only"}
        sides = {name: titles[name in with_masks] for name in overlaps}
    of_sides: dict[str, list[float]] = {}
    for name in sorted(overlaps, key=sides.get):
        of_sides.setdefault(sides[name], []).extend(overlaps[name])
    total = [[title, "", len(of_side), fmean(of_side)] for title, of_side in of_sides.items()]
    rows = [
        [printable(name), sides[name][0] if style else "", len(of_class), fmean(of_class)]
        for name, of_class in sorted(overlaps.items())
    ]
    return tabulate([*total, *rows], ["", "side", "masks", "mean IoU"], "github", floatfmt=".3f")
