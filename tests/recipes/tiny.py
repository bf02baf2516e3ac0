"""Small recipes, and a detector with random weights."""

import torch

from maskx_d2.backends.torchvision.training import TrainingModule
from maskx_d2.method import Recipe
from maskx_d2.runtime.checkpoints import write_checkpoint
from tests.backends.torchvision.tiny import MODEL

# A detector with random weights has few positive proposals.
AGNOSTIC = Recipe("class-agnostic", predictor="agnostic", channels=8, train_rois="both")
SUPERVISED = Recipe(
    "box-supervised",
    embedding_dropout=0.5,
    box_supervision={"projection": 0.3, "pairwise": 0.3},
    channels=8,
    train_rois="both",
)


def write_detector(path, categories, seed=0, **options):
    torch.manual_seed(seed)
    module = TrainingModule(
        class_names=[category["name"] for category in categories],
        category_ids=[category["id"] for category in categories],
        classes_with_masks=list(range(len(categories))),
        **{**MODEL, "predictor": None, "min_size": 128, "max_size": 128, **options},
    )
    write_checkpoint(path, {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)})
    return path
