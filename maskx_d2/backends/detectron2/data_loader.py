"""The data loaders."""

import contextlib
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.data.transforms import Augmentation
from detectron2.structures import BoxMode
from detectron2.utils import comm
from torch.utils.data import DataLoader, Sampler

from maskx_d2.backends.detectron2.class_split import (
    ClassHasMask,
    check_num_classes,
    check_same_classes,
    dataset_names,
)
from maskx_d2.backends.detectron2.config import check_has_keys
from maskx_d2.backends.detectron2.dataset_mapper import PartiallySupervisedMapper
from maskx_d2.backends.detectron2.datasets import is_read_here
from maskx_d2.backends.detectron2.once_per_node import load_once_per_node
from maskx_d2.data.errors import InputError
from maskx_d2.data.mask_measures import MaskMeasures
from maskx_d2.data.training_data import TrainingData
from maskx_d2.data.usable_objects import CROWD, NO_OBJECT, crowd_hint, has_area_in_image


def build_train_loader(
    cfg: CfgNode,
    *,
    mapper: Callable[[dict], object] | None = None,
    dataset: Sequence[dict] | None = None,
    sampler: Sampler | None = None,
    augmentations: Sequence[Augmentation] | None = None,
    start_iter: int = 0,
):
    """
    Build Detectron2's training loader with :class:`PartiallySupervisedMapper`. Datasets are mixed by
    DATALOADER.MASKX_DATASET_RATIO. Masks that DATASETS.CLASSES_WITH_MASKS removes are dropped when the
    dataset is loaded.

    Args:
        cfg: the config.
        mapper: as for Detectron2's loader; :class:`PartiallySupervisedMapper` if None.
        dataset: Detectron2's dicts, which are not modified; those of DATASETS.TRAIN if None.
        sampler: sampler of dataset indices; that of the config if None.
        augmentations: augmentations of the mapper that is built here; those of the config if None.
        start_iter: number of iterations that are done; their images are skipped.

    Returns:
        Detectron2's loader. Its attribute ``training_data`` is the :class:`TrainingData` of its dataset.

    Raises:
        ValueError: the datasets' classes are not the model's, there is no mask to learn from, or both a
            mapper and augmentations are given.
    """
    check_has_keys(cfg)
    names, given = cfg.DATASETS.TRAIN, dataset

    def load() -> tuple[list[dict], tuple[list[int], TrainingData]]:
        dataset, sizes = load_training_data(cfg, given)
        return dataset, (sizes, _count(cfg, dataset))

    dataset, (sizes, training_data) = load_once_per_node(load, datasets=names)
    if start_iter == 0 and comm.is_main_process():
        logging.getLogger(__name__).info("Training on %s: %s", ", ".join(names), training_data)
    ratio = cfg.DATALOADER.MASKX_DATASET_RATIO
    if sampler is None and ratio and given is None:
        sampler = mixing_sampler(sizes, ratio, seed=cfg.SEED)
    with _numpy_seed(cfg.SEED):
        arguments = build_detection_train_loader.from_config(
            cfg,
            mapper=_mapper(PartiallySupervisedMapper, cfg, mapper, augmentations, is_train=True),
            dataset=dataset,
            sampler=sampler,
        )
    if start_iter > 0:
        images_a_rank = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
        arguments["sampler"] = _SkipFirst(arguments["sampler"], start_iter * images_a_rank)
    if cfg.SEED >= 0:
        # A separate generator: by drawing from torch's, the loader would shift the random numbers of the
        # iteration in which it starts. One per rank, or workers of all ranks would flip and scale alike.
        arguments["seed"] = (cfg.SEED + start_iter) * comm.get_world_size() + comm.get_rank()
    loader = build_detection_train_loader(**arguments)
    loader.training_data = training_data
    return loader


@contextlib.contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """
    Some of Detectron2's samplers draw their seed from NumPy's generator, so that a resumed run would have
    another order of images. Its ``TrainingSampler`` uses SEED, even a negative one.
    """
    before = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(before)


def _mapper(
    kind: type[DatasetMapper],
    cfg: CfgNode,
    mapper: Callable[[dict], object] | None,
    augmentations: Sequence[Augmentation] | None,
    *,
    is_train: bool,
) -> Callable[[dict], object]:
    if mapper is None:
        own = {} if augmentations is None else {"augmentations": list(augmentations)}
        return kind(cfg, is_train=is_train, **own)
    if augmentations is not None:
        raise InputError(
            "a mapper and augmentations are given, expected only one: a mapper has its own augmentations"
        )
    return mapper


def load_training_data(cfg: CfgNode, given: Sequence[dict] | None = None) -> tuple[list[dict], list[int]]:
    """
    Load Detectron2's dicts of DATASETS.TRAIN with the masks that DATASETS.CLASSES_WITH_MASKS keeps, and the
    number of images: of each dataset with DATALOADER.MASKX_DATASET_RATIO, otherwise of all.

    Args:
        cfg: the config.
        given: dicts to use instead of those of DATASETS.TRAIN, with the same classes.

    Raises:
        ValueError: the datasets' classes are not the model's, or there is no mask to learn from.
    """
    names = cfg.DATASETS.TRAIN
    dataset, sizes = [], []
    parts = [(name,) for name in names] if cfg.DATALOADER.MASKX_DATASET_RATIO else [names]
    if given is not None:
        dataset, sizes, parts = _copied(given), [len(given)], []
    for together in parts:
        of_some = cfg.clone()
        of_some.defrost()
        of_some.DATASETS.TRAIN = together
        # Loading needs neither mapper nor sampler, but None would build Detectron2's.
        try:
            arguments = build_detection_train_loader.from_config(of_some, mapper=False, sampler=False)
        except AssertionError as error:
            if not str(error).startswith("No valid data"):
                raise
            raise InputError(
                f"{', '.join(together)} has no image with an object, expected at least one"
                f"{crowd_hint(_left_out(together)[CROWD])}"
            ) from error
        dataset += arguments["dataset"]
        sizes.append(len(arguments["dataset"]))
    check_num_classes(cfg, names[0])
    check_same_classes(names)
    if given is not None or not all(is_read_here(name) for name in names):
        drop_unusable(dataset)
    if cfg.DATASETS.CLASSES_WITH_MASKS != "all":
        remove_masks(dataset, ClassHasMask(names[0], cfg.DATASETS.CLASSES_WITH_MASKS)())
    num_teacher = len(_teacher_classes(dataset)) if cfg.MODEL.MASK_ON else 0
    learns_from_teacher = cfg.MODEL.ROI_MASK_HEAD.TEACHER.WEIGHT > 0
    if num_teacher and not learns_from_teacher:
        logging.getLogger(__name__).warning(
            "%d masks by a teacher are not used, because MODEL.ROI_MASK_HEAD.TEACHER.WEIGHT is 0",
            num_teacher,
        )
    has_teacher = learns_from_teacher and num_teacher > 0
    if cfg.MODEL.MASK_ON and not has_masks(dataset) and not has_teacher:
        raise InputError(
            f"no annotation of {', '.join(names)} has a mask that DATASETS.CLASSES_WITH_MASKS "
            f"{cfg.DATASETS.CLASSES_WITH_MASKS!r} keeps, expected at least one to learn masks from"
            f"{crowd_hint(_left_out(names, dataset)[CROWD])}"
        )
    return dataset, sizes


def _copied(dataset: Iterable[dict]) -> list[dict]:
    """A copy from which masks can be removed."""
    return [
        {**image, "annotations": [dict(a) for a in image["annotations"]]}
        if "annotations" in image
        else image
        for image in dataset
    ]


def _left_out(names: Sequence[str], dataset: Iterable[dict] = ()) -> Counter[str]:
    """
    What is not used of datasets. Of those that Detectron2 reads, only the crowd regions are known, in the
    images that it keeps.
    """
    known = (Counter(MetadataCatalog.get(name).get("left_out", {})) for name in names)
    left_out = sum(known, Counter())
    if not left_out[CROWD]:
        annotations = (a for image in dataset for a in image.get("annotations", ()))
        left_out[CROWD] = sum(bool(annotation.get("iscrowd")) for annotation in annotations)
    return left_out


def _count(cfg: CfgNode, dataset: list[dict]) -> TrainingData:
    annotations = (a for image in dataset for a in image.get("annotations", ()) if not a.get("iscrowd"))
    left_out = _left_out(cfg.DATASETS.TRAIN, dataset)
    if not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        del left_out[NO_OBJECT]
    return TrainingData.count(
        len(dataset),
        ((a["category_id"], bool(a.get("segmentation"))) for a in annotations),
        ClassHasMask(cfg.DATASETS.TRAIN[0], cfg.DATASETS.CLASSES_WITH_MASKS)(),
        left_out=+left_out,
        teacher_classes=_teacher_classes(dataset) if cfg.MODEL.ROI_MASK_HEAD.TEACHER.WEIGHT > 0 else (),
    )


def _teacher_classes(dataset: Iterable[dict]) -> list[int]:
    """For each object with a mask by a teacher, the index of its class."""
    annotations = (a for image in dataset for a in image.get("annotations", ()))
    return [a["category_id"] for a in annotations if "teacher_segmentation" in a]


def build_test_loader(
    cfg: CfgNode,
    dataset_name: str,
    *,
    mapper: Callable[[dict], object] | None = None,
    dataset: Sequence[dict] | None = None,
    sampler: Sampler | None = None,
    augmentations: Sequence[Augmentation] | None = None,
) -> DataLoader:
    """
    Build Detectron2's test loader for a dataset, which is read once per node.

    Args:
        cfg: the config.
        dataset_name: name of a registered dataset.
        mapper, dataset, sampler, augmentations: see :func:`build_train_loader`; the mapper is Detectron2's.
    """

    def load() -> tuple[list[dict], None]:
        return build_detection_test_loader.from_config(cfg, dataset_name, mapper=False)["dataset"], None

    if dataset is None:
        dataset, _ = load_once_per_node(load, datasets=[dataset_name])
    return build_detection_test_loader(
        dataset,
        mapper=_mapper(DatasetMapper, cfg, mapper, augmentations, is_train=False),
        sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def mixing_sampler(
    sizes: Sequence[int], ratio: Sequence[float], *, seed: int | None = None
) -> RepeatFactorTrainingSampler:
    """
    A sampler over concatenated datasets.

    Args:
        sizes: number of images of each dataset.
        ratio: relative numbers of images to draw from each dataset.
        seed: see ``RepeatFactorTrainingSampler``.
    """
    unit = sum(sizes) / sum(ratio)
    repeat_factors = [
        torch.full((size,), share * unit / size) for size, share in zip(sizes, ratio, strict=True)
    ]
    return RepeatFactorTrainingSampler(torch.cat(repeat_factors), seed=seed)


def load_without_masks(names: str | Sequence[str], *, split: str, **options) -> list[dict]:
    """
    For LazyConfig: ``get_detection_dataset_dicts`` without the masks that a split removes.

    Args:
        names: name of a registered dataset, or names of several with the same classes.
        split: a value of DATASETS.CLASSES_WITH_MASKS.
        options: see Detectron2's ``get_detection_dataset_dicts``.
    """
    names = dataset_names(names)
    check_same_classes(names)
    dataset = get_detection_dataset_dicts(names, **options)
    if not all(is_read_here(name) for name in names):
        drop_unusable(dataset)
    remove_masks(dataset, ClassHasMask(names[0], split)())
    return dataset


def remove_masks(dataset: list[dict], class_has_mask: list[bool]) -> None:
    """Remove the ``segmentation``, in place, from annotations of classes that should have no masks."""
    for image in dataset:
        for annotation in image.get("annotations", ()):
            if not class_has_mask[annotation["category_id"]]:
                annotation.pop("segmentation", None)


def drop_unusable(dataset: list[dict]) -> None:
    """
    Remove, in place, what cannot be used: objects whose box has no area in the image, and masks without a
    pixel. Files that this project reads have none of them.
    """
    images = [i for i in dataset if i.get("annotations") and {"height", "width"} <= i.keys()]
    annotations = list(itertools.chain.from_iterable(image["annotations"] for image in images))
    if not annotations:
        return
    lengths = [len(image["annotations"]) for image in images]
    sizes = np.repeat([(image["width"], image["height"]) for image in images], lengths, axis=0)
    measures = MaskMeasures.of([_mask(annotation) for annotation in annotations], sizes)
    is_empty = ~measures.has_pixels & ~measures.is_malformed & measures.fits
    is_empty[list(measures.rle_errors)] = False  # the mapper names them
    for annotation in itertools.compress(annotations, is_empty):
        if _mask(annotation) is not None:
            del annotation["segmentation"]
    has_area = iter(has_area_in_image(np.array([_xywh(a) for a in annotations], float), sizes).tolist())
    for image in images:
        image["annotations"] = [a for a in image["annotations"] if next(has_area)]


def _xywh(annotation: dict) -> Sequence[float]:
    box = annotation["bbox"]
    if annotation["bbox_mode"] == BoxMode.XYXY_ABS:
        return box[0], box[1], box[2] - box[0], box[3] - box[1]
    # Of the other forms, such as rotated boxes, Detectron2 itself decides.
    return box if annotation["bbox_mode"] == BoxMode.XYWH_ABS else (0.0, 0.0, 1.0, 1.0)


def _mask(annotation: dict) -> list | dict | None:
    """A mask in one of COCO's forms."""
    mask = annotation.get("segmentation")
    return mask if isinstance(mask, list | dict) and mask else None


def has_masks(dataset: Iterable[dict]) -> bool:
    """Whether any object of Detectron2's dicts, other than crowd regions, has a mask."""
    annotations = (a for image in dataset for a in image.get("annotations", ()))
    return any(a.get("segmentation") and not a.get("iscrowd") for a in annotations)


class _SkipFirst(Sampler):
    """A sampler's endless stream of indices without its beginning."""

    def __init__(self, sampler: Sampler, count: int):
        self.sampler = sampler
        self.count = count

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(iter(self.sampler), self.count, None)
