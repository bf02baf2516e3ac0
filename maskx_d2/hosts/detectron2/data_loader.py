"""The training data loader."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm
from torch.utils.data import Sampler

from maskx_d2.hosts.detectron2.class_split import ClassHasMask, check_num_classes, check_same_classes
from maskx_d2.hosts.detectron2.dataset_mapper import PartiallySupervisedMapper


def build_train_loader(cfg: CfgNode, *, start_iter: int = 0):
    """
    Detectron2's training loader, with :class:`PartiallySupervisedMapper`, with the datasets mixed by
    DATALOADER.DATASET_RATIO, and without the masks that DATASETS.CLASSES_WITH_MASKS takes away: they are
    dropped as the dataset is loaded.

    Args:
        cfg: the config.
        start_iter: iterations done before, whose images are passed over.
    """
    mixed = mix_datasets(cfg) if cfg.DATALOADER.DATASET_RATIO else {}
    arguments = build_detection_train_loader.from_config(
        cfg, mapper=PartiallySupervisedMapper(cfg, is_train=True), **mixed
    )
    check_num_classes(cfg, cfg.DATASETS.TRAIN[0])
    check_same_classes(cfg.DATASETS.TRAIN)
    if cfg.DATASETS.CLASSES_WITH_MASKS != "all":
        class_has_mask = ClassHasMask(cfg.DATASETS.TRAIN[0], cfg.DATASETS.CLASSES_WITH_MASKS)
        remove_masks(arguments["dataset"], class_has_mask())
    if cfg.MODEL.MASK_ON and not has_masks(arguments["dataset"]):
        raise ValueError(
            f"no annotation of {', '.join(cfg.DATASETS.TRAIN)} has a mask that DATASETS.CLASSES_WITH_MASKS "
            f"{cfg.DATASETS.CLASSES_WITH_MASKS!r} leaves, expected one at least to learn masks from"
        )
    if start_iter > 0:
        images_a_rank = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
        arguments["sampler"] = _SkipFirst(arguments["sampler"], start_iter * images_a_rank)
    if cfg.SEED >= 0:
        # A generator of its own: drawing from torch's, the loader would shift the random numbers of the
        # iteration that it is started in. Another for each rank, whose workers would flip and scale alike.
        arguments["seed"] = (cfg.SEED + start_iter) * comm.get_world_size() + comm.get_rank()
    return build_detection_train_loader(**arguments)


def mix_datasets(cfg: CfgNode) -> dict:
    """
    The training datasets, and a sampler that draws from each as DATALOADER.DATASET_RATIO says.

    Returns:
        ``{"dataset": Detectron2's dicts of all, "sampler": a sampler}``
    """
    datasets = []
    for name in cfg.DATASETS.TRAIN:
        of_one = cfg.clone()
        of_one.defrost()
        of_one.DATASETS.TRAIN = (name,)
        # No mapper is needed to load a dataset, but None would build Detectron2's.
        datasets.append(build_detection_train_loader.from_config(of_one, mapper=False)["dataset"])
    seed = cfg.SEED if cfg.SEED >= 0 else None
    return {
        "dataset": list(itertools.chain.from_iterable(datasets)),
        "sampler": mixing_sampler([len(d) for d in datasets], cfg.DATALOADER.DATASET_RATIO, seed=seed),
    }


def mixing_sampler(
    sizes: Sequence[int], ratio: Sequence[float], *, seed: int | None = None
) -> RepeatFactorTrainingSampler:
    """
    A sampler over datasets that lie one behind the other.

    Args:
        sizes: how many images each dataset has.
        ratio: how many images are drawn from each, against each other.
        seed: see ``RepeatFactorTrainingSampler``.
    """
    unit = sum(sizes) / sum(ratio)
    repeat_factors = [
        torch.full((size,), share * unit / size) for size, share in zip(sizes, ratio, strict=True)
    ]
    return RepeatFactorTrainingSampler(torch.cat(repeat_factors), seed=seed)


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


def has_masks(dataset: Iterable[dict]) -> bool:
    """Whether any annotation of Detectron2's dicts has a mask."""
    return any(a.get("segmentation") for image in dataset for a in image.get("annotations", ()))


class _SkipFirst(Sampler):
    """A sampler's endless stream of indices without its beginning."""

    def __init__(self, sampler: Sampler, count: int):
        self.sampler = sampler
        self.count = count

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(iter(self.sampler), self.count, None)
