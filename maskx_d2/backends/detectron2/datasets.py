"""Registering datasets in COCO's format: those of the config, and Visual Genome."""

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from msgspec import UNSET

from maskx_d2.backends.detectron2.labelled_classes import pack_classes
from maskx_d2.data.class_names import (
    coco_class_names,
    indices_in,
    name_of_synset,
    read_class_names,
    readable_visual_genome_class_names,
    visual_genome_class_names,
)
from maskx_d2.data.coco_file import read_coco_file
from maskx_d2.data.coco_format import Annotation, CocoFile, are_keypoints
from maskx_d2.data.errors import InputError, MissingFileError
from maskx_d2.data.rle import compressed
from maskx_d2.data.visual_genome import SPLITS, check_finished


def register_datasets(cfg: CfgNode) -> None:
    """
    Register the COCO-format datasets of DATASETS.MASKX_REGISTER that are not registered yet.

    Raises:
        FileNotFoundError: an annotation file, image folder or class list does not exist.
        ValueError: an entry is malformed, or its name is already registered with other files.
    """
    for entry in cfg.DATASETS.MASKX_REGISTER:
        is_list = isinstance(entry, list | tuple) and all(isinstance(item, str) for item in entry)
        if not is_list or len(entry) not in (3, 4):
            raise InputError(
                f"DATASETS.MASKX_REGISTER has the entry {entry!r}, expected "
                "[name, annotation file, image folder] or [name, annotation file, image folder, class list]"
            )
        name, json_file, image_root, *class_list = entry
        for file in (json_file, *class_list):
            if not Path(file).is_file():
                raise MissingFileError(f"DATASETS.MASKX_REGISTER: {file} of {name!r} is not a file")
        if not Path(image_root).is_dir():
            raise MissingFileError(f"DATASETS.MASKX_REGISTER: {image_root} of {name!r} is not a folder")
        if name not in DatasetCatalog:
            load = partial(_load_dataset, name, json_file, image_root, *class_list)
            DatasetCatalog.register(name, load)
            MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco")
            continue
        metadata = MetadataCatalog.get(name)
        registered = (metadata.get("json_file"), metadata.get("image_root"))
        if registered != (json_file, image_root):
            raise InputError(
                f"DATASETS.MASKX_REGISTER: {name!r} is already registered, with {registered[0]}: choose "
                "another name"
            )


def is_read_here(name: str) -> bool:
    """Whether a dataset that has been loaded was read by this project, and not by Detectron2."""
    return "left_out" in MetadataCatalog.get(name).as_dict()


def register_visual_genome() -> None:
    """
    Register these datasets, all with the 3,001 classes of Visual Genome, below Detectron2's dataset folder
    (the environment variable ``DETECTRON2_DATASETS``, or ``datasets``):

    - ``vg3k_train``, ``vg3k_val``, ``vg3k_test``: what ``maskx prepare vg3k`` writes;
    - ``coco_2017_train_vg3k``, ``coco_2017_val_vg3k``: COCO, whose 80 classes are the first of them.

    In addition to Detectron2's usual metadata they have ``classes_with_masks``, the 80 classes that have
    masks in COCO, ``readable_classes``, readable class names, and ``keep_repeated``: an object that is
    listed twice is used twice, as in the original code.
    """
    root = Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()
    classes = visual_genome_class_names()
    metadata = {
        "evaluator_type": "coco",
        "thing_classes": classes,
        "readable_classes": readable_visual_genome_class_names(),
        "classes_with_masks": list(range(len(coco_class_names()))),
        "keep_repeated": True,  # as in the original code
    }

    def register(name: str, load: Callable, json_file: Path, images: Path, category_ids: Iterable[int]):
        """``category_ids`` are the ids of the first classes, in order."""
        if name in DatasetCatalog:
            return
        files = {"json_file": str(json_file), "image_root": str(images)}
        DatasetCatalog.register(name, partial(load, name, **files))
        index_of = {category_id: i for i, category_id in enumerate(category_ids)}
        MetadataCatalog.get(name).set(**metadata, **files, thing_dataset_id_to_contiguous_id=index_of)

    genome, coco = root / "visual_genome", root / "coco"
    for split in SPLITS:
        name, category_ids = f"vg3k_{split}", range(1, len(classes) + 1)
        register(name, _load_visual_genome, genome / f"{name}.json", genome, category_ids)
    for split in ("train", "val"):
        original = MetadataCatalog.get(f"coco_2017_{split}")
        json_file = coco / "annotations" / f"instances_{split}2017.json"
        category_ids = original.thing_dataset_id_to_contiguous_id
        register(f"{original.name}_vg3k", _load_coco, json_file, coco / f"{split}2017", category_ids)


# ---- Loading ----


def _must_be_there(json_file: str, where_from: str) -> None:
    if not Path(json_file).is_file():
        raise MissingFileError(f"annotation file {json_file} is not a file: {where_from}")


def _load_dataset(name: str, json_file: str, image_root: str, class_list: str | None = None) -> list[dict]:
    """Load a dataset with the classes of its file, or with a class list that includes them."""
    file = read_coco_file(Path(json_file), needs_annotations=False)
    classes, indices = file.class_names, list(range(len(file.categories)))
    if class_list is not None:
        classes = read_class_names(Path(class_list))
        indices = indices_in(classes, file.class_names, what=f"annotation file {json_file}")
    category_ids = [category["id"] for category in file.categories]
    MetadataCatalog.get(name).set(
        thing_classes=classes,
        thing_dataset_id_to_contiguous_id=dict(zip(category_ids, indices, strict=True)),
    )
    return _records(name, file, image_root)


def _load_visual_genome(name: str, json_file: str, image_root: str) -> list[dict]:
    _must_be_there(json_file, "maskx prepare vg3k writes it")
    check_finished(Path(json_file).parent)
    file = read_coco_file(Path(json_file), keep_repeated=True)
    expected = visual_genome_class_names()
    found = [name_of_synset(category["name"]) for category in file.categories]
    if found != expected:
        differing = sum(a != b for a, b in zip(found, expected, strict=False))
        raise InputError(
            f"annotation file {json_file} has {len(found)} classes, {differing} of which differ from "
            f"the list of {len(expected)} that {name!r} is registered with: register it under another "
            "name with DATASETS.MASKX_REGISTER"
        )
    return _records(name, file, image_root)


def _load_coco(name: str, json_file: str, image_root: str) -> list[dict]:
    _must_be_there(json_file, "datasets/README.md says where to get it")
    file = read_coco_file(Path(json_file), keep_repeated=True)
    if file.class_names != coco_class_names():
        raise InputError(f"annotation file {json_file} has other classes, expected COCO's 80")
    return _records(name, file, image_root)


def _records(name: str, file: CocoFile, image_root: str) -> list[dict]:
    """
    The same dicts as of Detectron2's ``load_coco_json``, with class indices from the metadata. Annotations
    whose polygons all have fewer than three points keep their boxes. A mask by a teacher is the
    ``teacher_segmentation`` of an annotation, with its ``teacher_score``. If the file does not label all
    classes, the dicts have ``labelled_classes``: its categories, except those said to have no instances.
    Metadata ``left_out`` counts what is not used.
    """
    metadata = MetadataCatalog.get(name)
    index_of, num_classes = metadata.thing_dataset_id_to_contiguous_id, len(metadata.thing_classes)
    labelled = {index_of[c["id"]] for c in file.categories if c.get("instance_count") != 0}
    in_part = (
        {"labelled_classes": pack_classes(labelled, num_classes)} if len(labelled) < num_classes else {}
    )
    metadata.left_out = dict(file.left_out)
    return [
        {
            "file_name": os.path.join(image_root, image.file_name),
            "height": image.height,
            "width": image.width,
            "image_id": image.id,
            "annotations": [_object(annotation, index_of) for annotation in annotations],
            **in_part,
        }
        for image, annotations in file.by_image()
    ]


def _object(annotation: Annotation, index_of: Mapping[int, int]) -> dict:
    result = {"bbox": annotation.bbox, "category_id": index_of[annotation.category_id]}
    result["bbox_mode"] = BoxMode.XYWH_ABS
    if annotation.iscrowd is not UNSET:
        result["iscrowd"] = annotation.iscrowd
    mask = annotation.mask
    if mask is not None:
        result["segmentation"] = _compressed(mask)
    if annotation.teacher_mask is not None:
        result["teacher_segmentation"] = _compressed(annotation.teacher_mask)
        result["teacher_score"] = annotation.teacher_score
    if annotation.keypoints is not UNSET:
        result["keypoints"] = _keypoints(annotation.keypoints)
    return result


def _compressed(mask: list | dict) -> list | Mapping:
    return mask if isinstance(mask, list) else compressed(mask, *mask["size"])


def _keypoints(keypoints: object) -> object:
    """
    Shift coordinates to pixel centres, as Detectron2 expects; every third number is no coordinate.
    Malformed keypoints are left for the mapper to refuse, if the model uses keypoints.
    """
    if not are_keypoints(keypoints):
        return keypoints
    return [value if number % 3 == 2 else value + 0.5 for number, value in enumerate(keypoints)]
