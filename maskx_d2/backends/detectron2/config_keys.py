"""Config keys of this project: their defaults and meaning."""

from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode

from maskx_d2.data.images import MAX_MEGAPIXELS


@dataclass(frozen=True)
class Key:
    """A config key: its dotted name, its default, and its meaning in Markdown."""

    name: str
    default: Any
    meaning: str


_HEAD = "MODEL.ROI_MASK_HEAD"
_CLASSES = "MODEL.MASKX_CLASSES"

KEYS = (
    Key(
        "DATASETS.CLASSES_WITH_MASKS",
        "all",
        'Classes whose masks are used in training: `"all"`, `"voc"`, `"nonvoc"`, `"coco"`, `"E1_A20B60"` … '
        '`"E5_A60B20"`, or the path of a text file with one class name per line. It removes masks and '
        "never adds any.",
    ),
    Key(
        "DATASETS.MASKX_REGISTER",
        [],
        "Datasets in COCO format to register, each `[name, annotation file, image folder]`. A fourth item "
        "is a class list, an annotation file or a text file with one name per line, of which the dataset "
        "labels some. The other classes are left out of the classification loss for its images.",
    ),
    Key(
        "DATALOADER.MASKX_DATASET_RATIO",
        [],
        "How many images to draw from each of `DATASETS.TRAIN`, relative to each other: `[1, 1]` draws "
        "equally many from two datasets. Empty: in proportion to their sizes.",
    ),
    Key(
        "INPUT.MAX_MEGAPIXELS",
        MAX_MEGAPIXELS,
        "Larger images are refused: a file of a few kilobytes can hold gigabytes of pixels.",
    ),
    Key(
        "TEST.MASKX_CLASS_SPLIT",
        "",
        "The split that evaluation reports AP on A and B for, with the values of "
        '`DATASETS.CLASSES_WITH_MASKS`. Empty: that split itself. An oracle trains on `"all"` and is '
        "reported on the split of the models it is compared with.",
    ),
    Key("SOLVER.MASKX_OPTIMIZER", "SGD", '`"SGD"` or `"AdamW"`.'),
    Key(
        "SOLVER.CHECKPOINTS_TO_KEEP",
        2,
        "How many of the checkpoints that are saved every `SOLVER.CHECKPOINT_PERIOD` iterations to keep, "
        "the newest ones; 0 for all. Final weights are always kept.",
    ),
    Key(
        "MODEL.ROI_BOX_HEAD.GATHERED_REGRESSION",
        False,
        "Inference regresses boxes only for the pairs of proposal and class that are detected, not for all "
        "classes: the same detections, faster with many classes. Needs this project's ROI heads.",
    ),
    Key(
        f"{_CLASSES}.NAMES",
        [],
        "Class names of the model. Training writes this key and the next three into the `config.yaml` of a "
        "run, so that inference needs no annotation file.",
    ),
    Key(f"{_CLASSES}.CATEGORY_IDS", [], "The category id of each class."),
    Key(
        f"{_CLASSES}.TRAINED_WITH_MASKS",
        [],
        "Indices of the classes that it was trained with masks of.",
    ),
    Key(
        f"{_CLASSES}.TRAINED_BY_TEACHER",
        [],
        "Indices of the other classes that it was trained with masks by a teacher of.",
    ),
    Key(
        f"{_HEAD}.MASKX_PREDICTOR",
        "transfer",
        'Where the mask weights of a class come from: `"transfer"` (Mask^X R-CNN), `"agnostic"` (the '
        'paper\'s baseline) or `"class_specific"` (its oracle).',
    ),
    Key(
        f"{_HEAD}.CLASS_EMBEDDING",
        "cls+box",
        'What the weight transfer function reads: the box predictor\'s weights, `"cls"`, `"box"` or '
        '`"cls+box"`, or `"file"`, a fixed table.',
    ),
    Key(f"{_HEAD}.CLASS_EMBEDDING_FILE", "", 'For `"file"`: a `.npy` file of shape (`NUM_CLASSES`, D).'),
    Key(f"{_HEAD}.STOP_GRAD", True, "Whether the mask loss leaves the box predictor's weights unchanged."),
    Key(f"{_HEAD}.TRANSFER.NUM_LAYERS", 2, "Linear layers of the weight transfer function: 1, 2 or 3."),
    Key(f"{_HEAD}.TRANSFER.HIDDEN_DIM", 256, "Width of its hidden layers."),
    Key(f"{_HEAD}.TRANSFER.ACTIVATION", "leaky_relu", '`"leaky_relu"` (slope 0.1) or `"relu"`.'),
    Key(
        f"{_HEAD}.TRANSFER.EMBEDDING_DROPOUT",
        0.0,
        "Dropout on the class embeddings in training. An extension.",
    ),
    Key(f"{_HEAD}.MLP_BRANCH.NUM_LAYERS", 1, "Linear layers of the class-agnostic MLP branch; 0 for none."),
    Key(f"{_HEAD}.MLP_BRANCH.HIDDEN_DIM", 1024, "Width of its hidden layers."),
    Key(
        f"{_HEAD}.MLP_BRANCH.REDUCED_CHANNELS",
        0,
        "Above 0, the reduced form for small heads: a 1x1 convolution to this many channels, on the "
        "feature before the deconvolution, then the linear layers.",
    ),
    Key(
        f"{_HEAD}.BOX_SUPERVISION.PROJECTION",
        0.0,
        "Weight of the projection loss for RoIs whose instance has a box only; 0 for none. An extension, "
        "as all keys below.",
    ),
    Key(f"{_HEAD}.BOX_SUPERVISION.KNOWN_BACKGROUND", 0.0, "Weight of the known-background loss."),
    Key(f"{_HEAD}.BOX_SUPERVISION.PAIRWISE", 0.0, "Weight of the pairwise loss."),
    Key(f"{_HEAD}.BOX_SUPERVISION.START", 0, "Iterations before these losses start."),
    Key(
        f"{_HEAD}.BOX_SUPERVISION.WARMUP",
        0,
        "Iterations after the start in which their weights rise from zero. Both are scaled with "
        "`SOLVER.REFERENCE_WORLD_SIZE`, as Detectron2 scales `SOLVER.STEPS`.",
    ),
    Key(
        f"{_HEAD}.TEACHER.WEIGHT",
        0.0,
        'Weight of the loss for masks by a teacher (`"segmentation_source": "teacher"`), cross-entropy '
        "times the score of the mask; 0 for none.",
    ),
    Key(
        f"{_HEAD}.TEACHER.MIN_SCORE",
        0.0,
        "Masks by a teacher with a lower score are not used: their instances have a box only.",
    ),
    Key(
        f"{_HEAD}.TRAIN_ROIS",
        "proposals",
        'The RoIs that train the mask head: the sampled `"proposals"`, the `"ground_truth"` boxes, or '
        '`"both"`. C4 models take `"proposals"` only.',
    ),
    Key(f"{_HEAD}.ROIS_PER_IMAGE", 0, "The most of them per image, drawn at random; 0 for all."),
    Key(
        f"{_HEAD}.TRUNK",
        "convs",
        'What comes before the deconvolution: `NUM_CONV` convolutions (`"convs"`), or `"hourglass_20"`, '
        '`"hourglass_52"` or `"hourglass_100"` with n = `CONV_DIM` (64 in its paper), which needs `NORM` '
        "and `POOLER_RESOLUTION` 32.",
    ),
)


def add_maskx_config(cfg: CfgNode) -> None:
    """
    Add the keys of this project to a Detectron2 config, with their defaults. Existing keys keep their
    values. :data:`KEYS` says what they mean; so does ``docs/config-keys.md``.

    Args:
        cfg: as ``get_cfg()`` returns it.
    """
    for key in KEYS:
        node = cfg
        *parents, last = key.name.split(".")
        for name in parents:
            if name not in node:
                node[name] = CfgNode()
            node = node[name]
        if last not in node:
            node[last] = list(key.default) if isinstance(key.default, list) else key.default


def keys_as_markdown() -> str:
    """The table of ``docs/config-keys.md``. ``python -m`` with the name of this module prints it."""
    rows = [f"| `{key.name}` | `{key.default!r}` | {key.meaning} |" for key in KEYS]
    return "\n".join(["| key | default | meaning |", "| --- | --- | --- |", *rows]) + "\n"


if __name__ == "__main__":
    print(keys_as_markdown(), end="")
