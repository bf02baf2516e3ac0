"""Small models and batches for the tests of the Detectron2 backend."""

from contextlib import contextmanager
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from maskx_d2.backends.detectron2.command_line import read_config
from maskx_d2.demo.on_detectron2 import registrations
from maskx_d2.runtime.configs import config_file

SIDE = 64
NUM_CLASSES = 4

_SMALL = [
    *("MODEL.ROI_HEADS.NUM_CLASSES", NUM_CLASSES, "MODEL.FPN.OUT_CHANNELS", 16),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", 12, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
    *("MODEL.ROI_MASK_HEAD.NUM_CONV", 2, "MODEL.ROI_MASK_HEAD.TRANSFER.HIDDEN_DIM", 8),
    *("SOLVER.IMS_PER_BATCH", 4, "MODEL.ROI_MASK_HEAD.ROIS_PER_IMAGE", 0),
]

# As in the COCO configs, where the demo's detector has but the two levels that it reads.
ALL_LEVELS = [
    *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
    *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
    *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
    *("MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]),
    *("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4", "p5"]),
]


def model_config(*overrides, meta_architecture="GeneralizedRCNN") -> CfgNode:
    """The demo's Mask^X as in the paper, with fewer channels and 4 classes; end to end if not said."""
    return read_config(
        str(config_file("demo/maskx_as_in_the_paper_R_18_FPN.yaml")),
        [*_SMALL, "MODEL.META_ARCHITECTURE", meta_architecture, *overrides],
    )


def data_config(dataset, output, *overrides) -> CfgNode:
    """As ``model_config``, with the 32 classes of a generated dataset to train on."""
    return read_config(
        str(config_file("demo/maskx_as_in_the_paper_R_18_FPN.yaml")),
        [
            *_SMALL,
            *("MODEL.ROI_HEADS.NUM_CLASSES", 32),
            *("OUTPUT_DIR", str(output), "SEED", 1, "SOLVER.IMS_PER_BATCH", 2),
            *("DATASETS.MASKX_REGISTER", registrations(dataset)),
            *("DATASETS.CLASSES_WITH_MASKS", str(dataset.split_file)),
            *overrides,
        ],
    )


def build(cfg: CfgNode, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_model(cfg)


def save_untrained(dataset, folder: Path) -> tuple[Path, Path]:
    """Config and weights of an untrained model of a dataset's classes, which detects all that it can."""
    cfg = data_config(
        dataset,
        folder,
        *("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
    )
    (folder / "config.yaml").write_text(cfg.dump())
    torch.save({"model": build(cfg).state_dict()}, folder / "weights.pth")
    return folder / "config.yaml", folder / "weights.pth"


def instances(classes, has_mask=None, mask_value=None) -> Instances:
    """Objects in a 64x64 image: distinct boxes, and in each a disk (or ``mask_value`` everywhere)."""
    n = len(classes)
    offset = 6.0 * torch.arange(n)
    boxes = torch.stack([2 + offset, 3 + offset / 2, 34 + offset, 38 + offset / 2], 1).clamp(max=SIDE)
    y, x = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    masks = torch.stack(
        [(x - b[[0, 2]].mean()) ** 2 + (y - b[[1, 3]].mean()) ** 2 < 14**2 for b in boxes]
        or [torch.zeros(SIDE, SIDE, dtype=torch.bool)]
    )[:n]
    result = Instances((SIDE, SIDE))
    result.gt_boxes = Boxes(boxes)
    result.gt_classes = torch.tensor(classes, dtype=torch.int64)
    if has_mask is not None:
        result.gt_has_mask = torch.tensor(has_mask, dtype=torch.bool)
        if mask_value is not None:
            masks[~result.gt_has_mask] = mask_value
    result.gt_masks = BitMasks(masks)
    return result


def batch(*per_image: Instances) -> list[dict]:
    generator = torch.Generator().manual_seed(7)
    return [
        {
            "image": torch.randint(0, 256, (3, SIDE, SIDE), generator=generator).float(),
            "instances": i,
            "height": SIDE,
            "width": SIDE,
            "image_id": k + 1,
            "file_name": f"{k + 1}.png",
        }
        for k, i in enumerate(per_image)
    ]


def forget(*datasets: str) -> None:
    """Take datasets out of Detectron2's catalogs."""
    for name in datasets:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name, None)


@contextmanager
def storage():
    with EventStorage(0) as events:
        yield events


def losses(model: torch.nn.Module, inputs: list[dict], seed: int = 0) -> dict[str, torch.Tensor]:
    """The losses of a training step with the given seed for the sampling of RoIs."""
    model.train()
    torch.manual_seed(seed)
    with storage():
        return model(inputs)


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
