"""Registering datasets from the config, and the training data loader."""

import itertools
import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.datasets import load_coco_json
from detectron2.utils import comm
from torch.utils.data import Sampler

from maskx_d2.data.coco_json import drop_degenerate_polygons, read_checked_json
from maskx_d2.hosts.detectron2.class_split import ClassHasMask, check_num_classes
from maskx_d2.hosts.detectron2.dataset_mapper import PartiallySupervisedMapper


def register_datasets(cfg: CfgNode) -> None:
    """
    Register the COCO-format datasets of DATASETS.REGISTER that are not registered yet.

    Raises:
        FileNotFoundError: an annotation file or image folder does not exist.
        ValueError: an entry is not a triple, or its name stands for other files already.
    """
    for entry in cfg.DATASETS.REGISTER:
        if len(entry) != 3:
            raise ValueError(
                f"DATASETS.REGISTER has the entry {entry!r}, expected [name, annotation file, image folder]"
            )
        name, json_file, image_root = map(str, entry)
        if not Path(json_file).is_file():
            raise FileNotFoundError(f"DATASETS.REGISTER: {json_file} of {name!r} is no file")
        if not Path(image_root).is_dir():
            raise FileNotFoundError(f"DATASETS.REGISTER: {image_root} of {name!r} is no folder")
        if name not in DatasetCatalog:
            DatasetCatalog.register(name, partial(_load_coco, name, json_file, image_root))
            MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, evaluator_type="coco")
            continue
        metadata = MetadataCatalog.get(name)
        registered = (metadata.get("json_file"), metadata.get("image_root"))
        if registered != (json_file, image_root):
            raise ValueError(
                f"DATASETS.REGISTER: {name!r} is registered already, with {registered[0]}: choose "
                "another name"
            )


def _load_coco(name: str, json_file: str, image_root: str) -> list[dict]:
    """Detectron2's ``load_coco_json`` of a file that has been checked, and mended where it needs it."""
    content = read_checked_json(Path(json_file))
    # Detectron2 would drop annotations with no other polygons, their boxes too.
    if drop_degenerate_polygons(content["annotations"]) == 0:
        return load_coco_json(json_file, image_root, name)
    with tempfile.TemporaryDirectory() as folder:
        mended = Path(folder) / Path(json_file).name
        mended.write_text(json.dumps(content), encoding="utf-8")
        return load_coco_json(str(mended), image_root, name)


def build_train_loader(cfg: CfgNode, *, start_iter: int = 0):
    """
    Detectron2's training loader, with :class:`PartiallySupervisedMapper` and without the masks that
    DATASETS.CLASSES_WITH_MASKS takes away: they are dropped as the dataset is loaded.

    Args:
        cfg: the config.
        start_iter: iterations done before, whose images are passed over.
    """
    arguments = build_detection_train_loader.from_config(
        cfg, mapper=PartiallySupervisedMapper(cfg, is_train=True)
    )
    check_num_classes(cfg, cfg.DATASETS.TRAIN[0])
    if cfg.DATASETS.CLASSES_WITH_MASKS != "all":
        class_has_mask = ClassHasMask(cfg.DATASETS.TRAIN[0], cfg.DATASETS.CLASSES_WITH_MASKS)
        remove_masks(arguments["dataset"], class_has_mask())
    if start_iter > 0:
        images_a_rank = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
        arguments["sampler"] = _SkipFirst(arguments["sampler"], start_iter * images_a_rank)
    if cfg.SEED >= 0:
        # A generator of its own: drawing from torch's, the loader would shift the random numbers of the
        # iteration that it is started in.
        arguments["seed"] = cfg.SEED + start_iter
    return build_detection_train_loader(**arguments)


def load_without_masks(dataset_name: str, split: str) -> list[dict]:
    """
    For LazyConfig: Detectron2's dicts of a registered dataset, images without annotations left out,
    without the masks that a split (see DATASETS.CLASSES_WITH_MASKS) takes away.
    """
    dataset = get_detection_dataset_dicts(dataset_name)
    remove_masks(dataset, ClassHasMask(dataset_name, split)())
    return dataset


def remove_masks(dataset: list[dict], class_has_mask: list[bool]) -> None:
    """Take the ``segmentation`` away, in place, from annotations whose class shall have no masks."""
    for image in dataset:
        for annotation in image.get("annotations", ()):
            if not class_has_mask[annotation["category_id"]]:
                annotation.pop("segmentation", None)


class _SkipFirst(Sampler):
    """A sampler's endless stream of indices without its beginning."""

    def __init__(self, sampler: Sampler, count: int):
        self.sampler = sampler
        self.count = count

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(iter(self.sampler), self.count, None)
