"""Registering datasets in COCO's format: those of the config, and Visual Genome."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from maskx_d2.data.class_names import (
    coco_class_names,
    indices_in,
    name_of_synset,
    read_class_names,
    readable_visual_genome_class_names,
    visual_genome_class_names,
)
from maskx_d2.data.coco_json import (
    category_names,
    drop_degenerate_polygons,
    in_order,
    read_checked_json,
)
from maskx_d2.data.visual_genome import SPLITS, check_finished
from maskx_d2.hosts.detectron2.labelled_classes import pack_classes


def register_datasets(cfg: CfgNode) -> None:
    """
    Register the COCO-format datasets of DATASETS.REGISTER that are not registered yet.

    Raises:
        FileNotFoundError: an annotation file, image folder or class list does not exist.
        ValueError: an entry is not what it should be, or its name stands for other files already.
    """
    for entry in cfg.DATASETS.REGISTER:
        is_list = isinstance(entry, list | tuple) and all(isinstance(item, str) for item in entry)
        if not is_list or len(entry) not in (3, 4):
            raise ValueError(
                f"DATASETS.REGISTER has the entry {entry!r}, expected "
                "[name, annotation file, image folder] or [name, annotation file, image folder, class list]"
            )
        name, json_file, image_root, *class_list = entry
        for file in (json_file, *class_list):
            if not Path(file).is_file():
                raise FileNotFoundError(f"DATASETS.REGISTER: {file} of {name!r} is no file")
        if not Path(image_root).is_dir():
            raise FileNotFoundError(f"DATASETS.REGISTER: {image_root} of {name!r} is no folder")
        if name not in DatasetCatalog:
            load = partial(_load_dataset, name, json_file, image_root, *class_list)
            DatasetCatalog.register(name, load)
            MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco")
            continue
        metadata = MetadataCatalog.get(name)
        registered = (metadata.get("json_file"), metadata.get("image_root"))
        if registered != (json_file, image_root):
            raise ValueError(
                f"DATASETS.REGISTER: {name!r} is registered already, with {registered[0]}: choose "
                "another name"
            )


def register_visual_genome() -> None:
    """
    Register, below the folder that Detectron2 looks for datasets in (the environment variable
    ``DETECTRON2_DATASETS``, or ``datasets``), all with the 3,001 classes of Visual Genome:

    - ``vg3k_train``, ``vg3k_val``, ``vg3k_test``: what ``maskx prepare vg3k`` writes;
    - ``coco_2017_train_vg3k``, ``coco_2017_val_vg3k``: COCO, whose 80 classes are the first of them.

    Beside Detectron2's usual metadata they have ``classes_with_masks``, the 80 classes that COCO has masks
    of, and ``readable_classes``, the class names for people.
    """
    root = Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()
    classes = visual_genome_class_names()
    metadata = {
        "evaluator_type": "coco",
        "thing_classes": classes,
        "readable_classes": readable_visual_genome_class_names(),
        "classes_with_masks": list(range(len(coco_class_names()))),
    }

    def register(name: str, load: Callable, json_file: Path, images: Path, category_ids: Iterable[int]):
        """``category_ids`` are those of the first classes, in their order."""
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


@dataclass(frozen=True)
class _Checked:
    """What is needed of an annotation file that has been checked, so that it is not in memory twice."""

    path: str

    categories: list[dict]
    """In the order of the contiguous indices."""

    mended: dict | None
    """Its content, if something had to be changed."""

    @property
    def class_names(self) -> list[str]:
        return category_names(self.categories)


def _check(json_file: str) -> _Checked:
    content = read_checked_json(Path(json_file))
    # Detectron2 would drop annotations with no other polygons, their boxes too.
    changed = drop_degenerate_polygons(content["annotations"])
    return _Checked(json_file, in_order(content["categories"]), content if changed else None)


def _must_be_there(json_file: str, where_from: str) -> None:
    if not Path(json_file).is_file():
        raise FileNotFoundError(f"annotation file {json_file} is no file: {where_from}")


def _load_dataset(name: str, json_file: str, image_root: str, class_list: str | None = None) -> list[dict]:
    """With the classes that the file has, or with those of a list that has them too."""
    checked = _check(json_file)
    classes, indices = checked.class_names, list(range(len(checked.categories)))
    if class_list is not None:
        classes = read_class_names(Path(class_list))
        indices = indices_in(classes, checked.class_names, what=f"annotation file {json_file}")
    category_ids = [category["id"] for category in checked.categories]
    MetadataCatalog.get(name).set(
        thing_classes=classes,
        thing_dataset_id_to_contiguous_id=dict(zip(category_ids, indices, strict=True)),
    )
    return _records(name, checked, image_root)


def _load_visual_genome(name: str, json_file: str, image_root: str) -> list[dict]:
    _must_be_there(json_file, "maskx prepare vg3k writes it")
    check_finished(Path(json_file).parent)
    checked = _check(json_file)
    expected = visual_genome_class_names()
    found = [name_of_synset(category["name"]) for category in checked.categories]
    if found != expected:
        differing = sum(a != b for a, b in zip(found, expected, strict=False))
        raise ValueError(
            f"annotation file {json_file} has {len(found)} classes, of which {differing} are not those of "
            f"the list of {len(expected)} that {name!r} is registered with: register it by "
            "DATASETS.REGISTER under another name"
        )
    return _records(name, checked, image_root)


def _load_coco(name: str, json_file: str, image_root: str) -> list[dict]:
    _must_be_there(json_file, "datasets/README.md tells where it comes from")
    checked = _check(json_file)
    if checked.class_names != coco_class_names():
        raise ValueError(f"annotation file {json_file} has other classes, expected COCO's 80")
    return _records(name, checked, image_root)


def _records(name: str, checked: _Checked, image_root: str) -> list[dict]:
    """
    Detectron2's dicts of a file, with class indices by the metadata. Where it does not label all classes,
    they have ``labelled_classes``: those of its categories, but for such as say that they have no instance.
    """
    metadata = MetadataCatalog.get(name)
    if checked.mended is None:
        records = load_coco_json(checked.path, image_root)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(checked.path).name
            path.write_text(json.dumps(checked.mended), encoding="utf-8")
            records = load_coco_json(str(path), image_root)
    index_of, num_classes = metadata.thing_dataset_id_to_contiguous_id, len(metadata.thing_classes)
    labelled = {index_of[c["id"]] for c in checked.categories if c.get("instance_count") != 0}
    packed = pack_classes(labelled, num_classes)
    for record in records:
        for annotation in record["annotations"]:
            annotation["category_id"] = index_of[annotation["category_id"]]
        if len(labelled) < num_classes:
            record["labelled_classes"] = packed
    return records
