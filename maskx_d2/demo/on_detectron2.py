"""The demo's training runs on Detectron2."""

from pathlib import Path

from maskx_d2.data.files import write_text
from maskx_d2.demo.generated_dataset import GeneratedDataset
from maskx_d2.demo.run import Training
from maskx_d2.runtime.configs import config_file

COCO_COMMAND = "python train_net.py --num-gpus 8 --config-file configs/maskx_R_50_FPN_1x.yaml"
_CONFIGS = {
    "stage1": "demo/faster_rcnn_R_18_FPN.yaml",
    "class_agnostic": "demo/class_agnostic_R_18_FPN.yaml",
    "maskx_as_in_the_paper": "demo/maskx_as_in_the_paper_R_18_FPN.yaml",
    "maskx": "demo/maskx_R_18_FPN.yaml",
    "maskx_box_supervised": "demo/maskx_box_supervised_R_18_FPN.yaml",
    "oracle": "demo/oracle_R_18_FPN.yaml",
}


def train(run: Training) -> Path:
    """See :class:`maskx_d2.demo.run.Backend`. This is train_net.py with a progress bar."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    try:
        return _train(run)
    finally:
        # Another demo in this process has its own datasets under these names.
        for name in ("shapes_train", "shapes_train_all_masks", "shapes_test"):
            if name in DatasetCatalog:
                DatasetCatalog.remove(name)
                MetadataCatalog.remove(name)


def _train(run: Training) -> Path:
    from detectron2.utils.env import seed_all_rng

    from maskx_d2.backends.detectron2.command_line import read_config
    from maskx_d2.backends.detectron2.progress import ProgressBar
    from maskx_d2.backends.detectron2.trainer import Trainer

    overrides = [
        *("OUTPUT_DIR", str(run.folder.resolve()), "SEED", run.seed),
        *("SOLVER.MAX_ITER", run.iterations, "MODEL.WEIGHTS", str(run.detector or "")),
        *("DATASETS.MASKX_REGISTER", registrations(run.dataset)),
        *("DATASETS.CLASSES_WITH_MASKS", run.classes_with_masks),
        *("TEST.MASKX_CLASS_SPLIT", str(run.dataset.split_file.resolve())),
        *("MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.START", run.box_supervision_start),
        *("MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.WARMUP", run.box_supervision_warmup),
    ]
    cfg = read_config(str(config_file(_CONFIGS[run.name])), overrides)
    write_text(run.folder / "config.yaml", cfg.dump())
    seed_all_rng(cfg.SEED)
    trainer = Trainer(cfg)
    trainer.register_hooks([ProgressBar(run.title)])
    trainer.resume_or_load(resume=False)
    if run.detector is not None:
        backbone = trainer.model.backbone
        backbone.forward = run.frozen_features.remember(backbone.forward)
    trainer.train()
    return (run.folder / "model_final.pth").resolve()


def predict_options(folder: Path) -> str:
    """See :class:`maskx_d2.demo.run.Backend`."""
    return f"--config-file {folder}/config.yaml --weights {folder}/model_final.pth"


def registrations(dataset: GeneratedDataset) -> list[list[str]]:
    """Entries of DATASETS.MASKX_REGISTER, which are valid from any working directory."""
    root = GeneratedDataset(dataset.root.resolve())
    return [
        ["shapes_train", str(root.train_json), str(root.train_images)],
        ["shapes_train_all_masks", str(root.all_masks_json), str(root.train_images)],
        ["shapes_test", str(root.test_json), str(root.test_images)],
    ]
