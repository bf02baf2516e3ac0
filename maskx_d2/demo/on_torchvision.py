"""The demo's training runs on torchvision."""

from pathlib import Path

from maskx_d2.demo.run import Training
from maskx_d2.runtime.configs import config_file

COCO_COMMAND = f"maskx torchvision fit --config {config_file('torchvision/maskx_resnet50_fpn_1x.yaml')}"

# The detector of configs/demo, as closely as torchvision's parts allow.
_DETECTOR = {
    "depth": 18,
    "norm": "GN",
    "fpn_channels": 64,
    "returned_layers": [1, 2],
    "anchor_sizes": [[40], [56], [80]],
    "anchor_aspect_ratios": [1.0],
    "box_head_dim": 256,
    "box_sampling_ratio": 1,  # halves the time of RoIAlign's backward on a CPU
    "mask_head_channels": [64, 64, 64, 64],
    "min_size": 128,
    "max_size": 128,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.227, 0.227, 0.227],
    "rpn_pre_nms_top_n_train": 300,
    "rpn_pre_nms_top_n_test": 200,
    "rpn_post_nms_top_n_train": 100,
    "rpn_post_nms_top_n_test": 50,
    "box_batch_size_per_image": 64,
    "box_positive_fraction": 0.5,
}
_TRANSFER = {"predictor": "transfer", "class_embedding": "cls", "embedding_dropout": 0.5}
_MASK_BRANCHES = {
    "class_agnostic": {"predictor": "agnostic", "mlp_layers": 0},
    "maskx": _TRANSFER,
    "maskx_box_supervised": {
        **_TRANSFER,
        "box_supervision": {"projection": 0.3, "pairwise": 0.3},
    },
    "oracle": {**_TRANSFER, "embedding_dropout": 0.0},
    "maskx_as_in_the_paper": {"predictor": "transfer"},
}
_STAGE_1 = {"learning_rate": 0.02, "warmup_steps": 50}
_STAGE_2 = {
    "mlp_reduced_channels": 8,
    "rois_per_image": 4,
    "optimizer": "AdamW",
    "learning_rate": 0.002,
    "warmup_steps": 30,
}


def train(run: Training) -> Path:
    """See :class:`maskx_d2.demo.run.Backend`."""
    from lightning.pytorch import Trainer, seed_everything
    from lightning.pytorch.loggers import TensorBoardLogger

    from maskx_d2.backends.torchvision.callbacks import (
        MetricsFile,
        ProgressBar,
        RepeatableSteps,
        WholeFiles,
    )
    from maskx_d2.backends.torchvision.data_module import CocoDataModule
    from maskx_d2.backends.torchvision.training import TrainingModule

    is_stage_1 = run.detector is None
    data = CocoDataModule(
        run.train_json,
        run.dataset.train_images,
        run.dataset.test_json,
        run.dataset.test_images,
        classes_with_masks=run.classes_with_masks,
        class_split=str(run.dataset.split_file),
        batch_size=8,
        num_workers=0,
        seed=run.seed,
    )
    seed_everything(run.seed, verbose=False)
    settings = {"predictor": None, **_STAGE_1} if is_stage_1 else {**_STAGE_2, **_mask_branch(run)}
    module = TrainingModule(
        class_names=data.class_names,
        category_ids=data.category_ids,
        classes_with_masks=data.evaluated_with_masks,
        detector=None if is_stage_1 else str(run.detector),
        lr_schedule="cosine",
        **_DETECTOR,
        **settings,
    )
    if not is_stage_1:
        backbone = module.model.backbone
        backbone.forward = run.frozen_features.remember(backbone.forward)
    trainer = Trainer(
        default_root_dir=run.folder,
        max_steps=run.iterations,
        accelerator="cpu",
        gradient_clip_val=5.0 if is_stage_1 else None,
        log_every_n_steps=20,
        num_sanity_val_steps=0,
        limit_val_batches=0 if is_stage_1 else None,
        logger=[TensorBoardLogger(run.folder, name="", version=""), MetricsFile(run.folder)],
        callbacks=[RepeatableSteps(run.seed), ProgressBar(run.title)],
        plugins=[WholeFiles()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    return run.folder / "model_final.ckpt"


def predict_options(folder: Path) -> str:
    """See :class:`maskx_d2.demo.run.Backend`."""
    return f"--weights {folder}/model_final.ckpt"


def _mask_branch(run: Training) -> dict:
    branch = _MASK_BRANCHES[run.name]
    if "box_supervision" not in branch:
        return branch
    ramp = {"start": run.box_supervision_start, "warmup": run.box_supervision_warmup}
    return {**branch, "box_supervision": {**branch["box_supervision"], **ramp}}
