"""Predicts masks for annotations that have a box and a class but no mask; writes the completed file."""

import contextlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pycocotools.mask as mask_util

from maskx_d2.data.addresses import file_in, is_address
from maskx_d2.data.coco_errors import measure
from maskx_d2.data.coco_file import read_json, records_of
from maskx_d2.data.coco_format import TEACHER, CocoFile, Image
from maskx_d2.data.errors import InputError, MissingFileError
from maskx_d2.data.files import check_keeps_inputs, check_replaceable, file_digest, write_text
from maskx_d2.data.polygons import to_polygons
from maskx_d2.data.rle import check_rle, compressed, overlap
from maskx_d2.data.usable_objects import rectangle_classes
from maskx_d2.evaluation.pictures import ClassStyle
from maskx_d2.inference.detector import KnownObjects, MaskPredictor, PredictedMask
from maskx_d2.inference.mask_comparison import (
    Choice,
    MaskComparison,
    MaskedObject,
    better_models,
    choice_table,
)
from maskx_d2.inference.masks_in_boxes import BoxesOfImage, FoundMasks, UnreadImage, find_masks
from maskx_d2.runtime.journal import Journal, open_journal

FORMATS = ("rle", "polygon")
PREDICTED = ("predicted", TEACHER)
"""Values of ``segmentation_source`` of masks that nobody has drawn."""

MODEL = "model"
"""Name of the first model in a comparison; the second is the teacher."""

FindMasks = Callable[[MaskPredictor, list[BoxesOfImage]], Iterable[FoundMasks | UnreadImage]]


@dataclass
class Filled:
    """The result of :func:`fill_masks`."""

    num_filled: int = 0
    left: Counter[str] = field(default_factory=Counter)
    """Reason -> number of annotations that were left unchanged."""

    passed_over: list[str] = field(default_factory=list)
    """The reasons why images could not be read."""

    comparison: MaskComparison | None = None
    """The new masks and those that exist, if the latter were predicted too."""

    choices: dict[str, Choice] = field(default_factory=dict)
    """Class -> which of two models has filled it, on request."""


def fill_masks(
    predictor: MaskPredictor,
    annotations: Path,
    images: Path | str,
    output: Path,
    *,
    model: object,
    teacher: MaskPredictor | None = None,
    per_class_best: bool = False,
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

    If it is killed and started again, it continues where it was, using a file beside the output for each
    model.

    Args:
        predictor: the model; its classes, if it knows any, are matched by name.
        annotations: annotation file in COCO format.
        images: the folder of its images; with Ray's ``find_masks`` it can also be an address.
        output: the annotation file to write.
        model: JSON values that identify the model, and the teacher.
        teacher: a second model, to compare with the first on the masks that exist.
        per_class_best: fill each class by the better of the two, see :func:`better_models`; else by the
            first.
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
    compares = also_replace or teacher is not None
    wanted = _wanted(
        content, file, categories, filled, with_masks=compares, of_all_classes=teacher is not None
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    work = {"annotations": file_digest(annotations), "model": model, "also_replace": compares}
    if replace_rectangles:
        work["replace_rectangles"] = True
    predictors = {MODEL: predictor} if teacher is None else {MODEL: predictor, TEACHER: teacher}
    masks: dict[str, dict[int, PredictedMask | None]] = {}
    with contextlib.ExitStack() as stack:
        journals = []
        for name, each in predictors.items():
            suffix = ".unfinished" if name == MODEL else f".{name}.unfinished"
            path = output.with_name(f"{output.name}{suffix}")
            journals.append(stack.enter_context(open_journal(path, work=work, kind=FoundMasks)))
            known = {i: o for i, o in wanted.items() if name == TEACHER or o.category_id is not None}
            find = partial(find_masks, each)
            masks[name] = _predict(find, known, journals[-1], str(images), filled)
        if compares:
            filled.comparison = _compared(masks, wanted, predictor.style)
        if per_class_best:
            unknown = frozenset(o.class_name for o in wanted.values() if o.category_id is None)
            filled.choices = better_models(
                filled.comparison, is_calibrated=predictor.calibration is not None, unknown=unknown
            )
        chosen = {
            i: filled.choices[o.class_name].model if per_class_best else MODEL
            for i, o in wanted.items()
            if also_replace or o.mask is None
        }
        _write_into(wanted, masks, chosen, predictors, filled, form=form, min_score=min_score)
        write_text(output, json.dumps(content))
        for journal in journals:
            journal.delete()
    return filled


def _predict(
    find: Callable[[list[BoxesOfImage]], Iterable[FoundMasks | UnreadImage]],
    wanted: dict[int, "_Object"],
    journal: Journal,
    images: str,
    filled: Filled,
) -> dict[int, PredictedMask | None]:
    """The masks of a model by annotation id. Those that are not in the journal are added to it."""
    masks: dict[int, PredictedMask | None] = {}
    for done in journal.done:
        if twice := masks.keys() & done.masks.keys():
            raise InputError(f"{journal.path} has masks of annotation {min(twice)} twice: delete it")
        masks |= _checked(done, wanted, journal.path)
    todo = [o for o in wanted.values() if o.annotation["id"] not in masks]
    of_images = _by_image(todo, images)
    unread = []
    for found in find(of_images) if of_images else ():
        if isinstance(found, UnreadImage):
            unread.append(found.reason)
            if found.reason not in filled.passed_over:  # by the first model
                filled.passed_over.append(found.reason)
                filled.left["annotations of images that cannot be read"] += found.num_objects
        else:
            journal.append(found)
            masks |= found.masks
    if not masks and of_images and len(unread) == len(of_images):
        raise InputError(f"none of {len(of_images)} images can be read: {unread[0]}")
    return masks


@dataclass(frozen=True)
class _Object:
    """An annotation that gets a mask."""

    annotation: dict
    """As in the file."""

    image: Image
    mask: list | Mapping | None
    """The mask that there is."""

    class_name: str
    category_id: int | None
    """Category id of the model; None if it does not know the class."""

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
    content: dict,
    file: CocoFile,
    categories: dict[int, int],
    filled: Filled,
    *,
    with_masks: bool,
    of_all_classes: bool,
) -> dict[int, _Object]:
    """The annotations that masks are predicted for, by id; the others are counted."""
    images = {image.id: image for image in file.images}
    used = {annotation.id: annotation for annotation in file.annotations}
    names = {category["id"]: name for category, name in zip(file.categories, file.class_names, strict=True)}
    wanted = {}
    for record in content["annotations"]:
        annotation = used.get(record["id"])
        mask = annotation and (annotation.mask or annotation.teacher_mask)
        if annotation is None:
            filled.left["boxes without area in the image"] += not record.get("segmentation") or with_masks
        elif annotation.iscrowd:
            filled.left["crowd regions"] += mask is None or with_masks
        elif mask is not None and not with_masks:
            continue
        elif annotation.category_id not in categories and not of_all_classes:
            filled.left["annotations of classes that the model does not know"] += 1
        else:
            image, (x, y, width, height) = images[annotation.image_id], annotation.bbox
            box = [max(x, 0), max(y, 0), min(x + width, image.width), min(y + height, image.height)]
            wanted[annotation.id] = _Object(
                record,
                image,
                mask,
                names[annotation.category_id],
                categories.get(annotation.category_id),
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
            # A class that the model does not know is for the teacher alone, which reads no class.
            objects=KnownObjects([k.box for k in of_image], [k.category_id or 0 for k in of_image]),
        )
        for of_image in of_images.values()
    ]


def _compared(
    masks: Mapping[str, Mapping[int, PredictedMask | None]],
    wanted: dict[int, _Object],
    style: ClassStyle | None,
) -> MaskComparison:
    """Compare the masks of each model with those that exist."""
    sides = {}
    for known in wanted.values() if style is not None else ():
        is_known, is_a = known.category_id is not None, known.category_id in style.with_masks
        sides[known.class_name] = ("B", "A")[is_a] if is_known else "-"
    comparison = MaskComparison(list(masks), sides)
    for annotation_id, known in wanted.items():
        of_models = {name: of_model.get(annotation_id) for name, of_model in masks.items()}
        if not any(annotation_id in of_model for of_model in masks.values()):
            continue  # its image cannot be read
        ious = None
        if known.mask is not None and known.annotation.get("segmentation_source") not in PREDICTED:
            truth = compressed(known.mask, known.image.height, known.image.width)
            ious = {name: _overlap(mask, truth) for name, mask in of_models.items()}
            if known.category_id is None:
                ious[MODEL] = math.nan
        x0, y0, x1, y1 = known.box
        scores = {name: mask.score if mask else 0.0 for name, mask in of_models.items()}
        comparison.objects.append(MaskedObject(known.class_name, (x1 - x0) * (y1 - y0), scores, ious))
    return comparison


def _overlap(mask: PredictedMask | None, truth: Mapping) -> float:
    return 0.0 if mask is None else overlap(mask.rle, truth)


def _write_into(
    wanted: dict[int, _Object],
    masks: Mapping[str, Mapping[int, PredictedMask | None]],
    chosen: Mapping[int, str],
    predictors: Mapping[str, MaskPredictor],
    filled: Filled,
    *,
    form: str,
    min_score: float,
) -> None:
    for annotation_id, name in chosen.items():
        annotation = wanted[annotation_id].annotation
        if annotation_id not in masks[name]:
            if wanted[annotation_id].category_id is None:
                filled.left["annotations of classes that the model does not know"] += 1
            continue
        mask = masks[name][annotation_id]
        if mask is None or mask_util.area(mask.rle) == 0:
            filled.left["annotations whose predicted mask has no pixel"] += 1
        elif mask.score < min_score:
            filled.left[f"annotations whose predicted mask has a score below {min_score:g}"] += 1
        else:
            annotation["segmentation"] = mask.rle if form == "rle" else to_polygons(mask.rle)
            annotation["segmentation_source"] = predictors[name].source
            annotation["mask_score"] = round(mask.score, 4)
            filled.num_filled += 1


def summary(filled: Filled) -> str:
    """A summary for users."""
    lines = [f"{filled.num_filled:,} masks are filled in"]
    lines += [f"  {count:,} {reason} are left unchanged" for reason, count in filled.left.items()]
    if filled.comparison is not None and filled.comparison.measured:
        lines += ["", filled.comparison.table()]
    if filled.choices:
        lines += ["", choice_table(filled.choices, filled.comparison.models)]
    return "\n".join(lines)
