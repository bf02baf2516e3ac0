"""Class splits of Detectron2 datasets."""

from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from maskx_d2.backends.detectron2.config import check_has_keys
from maskx_d2.data.class_names import first_difference
from maskx_d2.data.class_splits import classes_with_masks
from maskx_d2.data.errors import InputError


def class_names(dataset_name: str) -> list[str]:
    """
    Readable names of a dataset's classes, in the order of their contiguous indices. Detectron2 knows the
    classes of a user's own COCO JSON only after loading it, so it is loaded if necessary.
    """
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("thing_classes") is None:
        load_dataset(dataset_name)
    return list(metadata.get("readable_classes") or metadata.thing_classes)


def category_ids(dataset_name: str) -> list[int]:
    """The dataset's category id of each class; 1, 2, 3, ... if it labels only some of the classes."""
    num_classes = len(class_names(dataset_name))
    to_contiguous = MetadataCatalog.get(dataset_name).get("thing_dataset_id_to_contiguous_id")
    if to_contiguous is None:
        return list(range(num_classes))
    if len(to_contiguous) < num_classes:
        return list(range(1, num_classes + 1))
    return sorted(to_contiguous, key=to_contiguous.get)


def load_dataset(dataset_name: str) -> list[dict]:
    """
    Detectron2's dicts of a dataset.

    Raises:
        ValueError: no dataset of this name is registered.
    """
    if dataset_name not in DatasetCatalog:
        raise InputError(
            f"dataset {dataset_name!r} of DATASETS.TRAIN or DATASETS.TEST is not registered: use a "
            "registered name, or register it with DATASETS.MASKX_REGISTER"
        )
    return DatasetCatalog.get(dataset_name)


def dataset_names(names: str | Sequence[str]) -> list[str]:
    """The dataset names in a LazyConfig, which may have one or several."""
    return [names] if isinstance(names, str) else list(names)


def check_same_classes(dataset_names: Sequence[str]) -> None:
    """Raise ValueError unless the datasets have the same classes in the same order."""
    first, *others = dataset_names
    expected = class_names(first)
    for name in others:
        different = first_difference(expected, class_names(name))
        if different is not None:
            number, a, b = different
            raise InputError(
                f"the datasets {first!r} and {name!r} have other classes, number {number + 1} is {a!r} and "
                f"{b!r}: give both the same class list, the fourth item of a DATASETS.MASKX_REGISTER entry"
            )


def model_class_names(cfg: CfgNode) -> list[str] | None:
    """
    Names of a model's classes in the order of their contiguous indices: those of the dataset that it is
    trained on, or those recorded in the config of a run; None if neither is known.
    """
    number = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    for name in cfg.DATASETS.TRAIN[:1]:
        if name in DatasetCatalog and len(names := class_names(name)) == number:
            return names
    recorded = list(cfg.MODEL.MASKX_CLASSES.NAMES)
    return recorded if len(recorded) == number else None


def check_num_classes(cfg: CfgNode, dataset_name: str) -> None:
    """Raise ValueError unless the model has as many classes as the dataset."""
    found = len(class_names(dataset_name))
    if found != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        raise InputError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}, but the dataset "
            f"{dataset_name!r} has {found} classes"
        )


@dataclass(frozen=True)
class ClassHasMask:
    """Returns for each class of a dataset whether a split keeps its masks, once the dataset is known."""

    dataset_name: str

    split: str
    """A value of DATASETS.CLASSES_WITH_MASKS."""

    def indices(self) -> list[int]:
        """Contiguous indices of the classes that keep their masks."""
        return _read_split("DATASETS.CLASSES_WITH_MASKS", self.split, class_names(self.dataset_name))

    def __call__(self) -> list[bool]:
        with_masks = set(self.indices())
        return [i in with_masks for i in range(len(class_names(self.dataset_name)))]


def classes_with_masks_of(dataset_name: str, split: str) -> list[int]:
    """Contiguous indices of the classes of a registered dataset that have masks under a split."""
    return classes_with_masks(split, class_names(dataset_name))


def evaluated_classes_with_masks(cfg: CfgNode, dataset_name: str) -> list[int]:
    """Contiguous indices of A in the split that evaluation reports on: see TEST.MASKX_CLASS_SPLIT."""
    check_has_keys(cfg)
    names = class_names(dataset_name)
    if cfg.TEST.MASKX_CLASS_SPLIT:
        return _read_split("TEST.MASKX_CLASS_SPLIT", cfg.TEST.MASKX_CLASS_SPLIT, names)
    return _read_split("DATASETS.CLASSES_WITH_MASKS", cfg.DATASETS.CLASSES_WITH_MASKS, names)


def _read_split(key: str, split: str, names: list[str]) -> list[int]:
    try:
        return classes_with_masks(split, names)
    except InputError as error:
        raise type(error)(f"{key} is {split!r}: {error}") from error
