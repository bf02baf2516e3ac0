import json
import os
import signal

import pytest
import torch
from detectron2.engine import DefaultTrainer, HookBase

import maskx_d2
from maskx_d2.backends.detectron2 import Trainer, command_line
from maskx_d2.backends.detectron2.evaluator import PartiallySupervisedEvaluator

from ...forked import run_forked
from . import tiny

ONLY_LOSSES = [
    "DATASETS.TEST",
    (),
    "SOLVER.BASE_LR",
    0.001,
    "SOLVER.MASKX_OPTIMIZER",
    "SGD",
    "SOLVER.WARMUP_ITERS",
    5,
]
END_TO_END = ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"]


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


@pytest.mark.parametrize("workers", [0, 1])
def test_somebody_elses_trainer_needs_the_import_and_three_config_lines(shapes_dataset, tmp_path, workers):
    """Detectron2's own DefaultTrainer, mapper and loader on a dataset with all masks."""
    cfg = tiny.data_config(
        shapes_dataset,
        tmp_path,
        *END_TO_END,
        *ONLY_LOSSES,
        *("DATASETS.TRAIN", ("shapes_test",), "SOLVER.MAX_ITER", 3, "DATALOADER.NUM_WORKERS", workers),
    )
    assert cfg.MODEL.ROI_HEADS.NAME == "PartiallySupervisedROIHeads"  # the three lines
    assert cfg.MODEL.ROI_MASK_HEAD.NAME == "MaskXHead"
    assert cfg.DATASETS.CLASSES_WITH_MASKS == str(shapes_dataset.split_file)
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    (last,) = metrics(tmp_path)[-1:]
    assert last["iteration"] == 2 and 0 < last["loss_mask"] < 10
    # Of the sampled positive RoIs those of classes without masks did not reach the mask head.
    assert 0 < last["roi_head/num_mask_samples"] < last["roi_head/num_fg_samples"]


def test_old_checkpoints_go_also_those_of_a_run_that_goes_on(shapes_dataset, tmp_path):
    def run(iterations, *options):
        options = [*END_TO_END, *ONLY_LOSSES, "SOLVER.CHECKPOINT_PERIOD", 1, *options]
        cfg = tiny.data_config(shapes_dataset, tmp_path, *options, "SOLVER.MAX_ITER", iterations)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=True)
        trainer.train()
        return sorted(path.name for path in tmp_path.glob("model_*.pth"))

    assert run(3) == ["model_0000001.pth", "model_0000002.pth", "model_final.pth"]
    assert run(5) == ["model_0000003.pth", "model_0000004.pth", "model_final.pth"]
    assert len(run(8, "SOLVER.CHECKPOINTS_TO_KEEP", 0)) == 6


def test_evaluation_with_test_time_augmentation_is_beside_the_other(shapes_dataset, tmp_path):
    aug = ["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (tiny.SIDE,)]
    trainer = Trainer(tiny.data_config(shapes_dataset, tmp_path, *END_TO_END, "SOLVER.MAX_ITER", 2, *aug))
    trainer.resume_or_load(resume=False)
    trainer.train()
    logged = {key for line in metrics(tmp_path) for key in line}
    assert {"segm/AP", "segm_TTA/AP", "segm_A_TTA/AP", "bbox_B_TTA/AP50"} <= logged
    assert (tmp_path / "inference_TTA" / "ap_by_group.json").is_file()
    with pytest.raises(ValueError, match=r"TEST.AUG.ENABLED is True, expected False with MODEL.KEYPOINT"):
        tiny.data_config(shapes_dataset, tmp_path, *aug, "MODEL.KEYPOINT_ON", True)


def test_a_trainer_with_a_loader_of_its_own_resumes_with_it(shapes_dataset, tmp_path):
    class Theirs(Trainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return maskx_d2.build_train_loader(cfg)

    for iterations in (2, 4):
        options = [*END_TO_END, *ONLY_LOSSES, "SOLVER.MAX_ITER", iterations]
        trainer = Theirs(tiny.data_config(shapes_dataset, tmp_path, *options))
        trainer.resume_or_load(resume=True)
        assert trainer.start_iter == iterations - 2
        trainer.train()
    assert [line["iteration"] for line in metrics(tmp_path)][-1] == 3


def test_end_to_end_training_logs_all_losses_and_ap_on_both_sides(shapes_dataset, tmp_path):
    cfg = tiny.data_config(
        shapes_dataset,
        tmp_path,
        *END_TO_END,
        *("SOLVER.MAX_ITER", 4),
    )
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    logged = {key: value for line in metrics(tmp_path) for key, value in line.items()}
    for name in ("loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"):
        assert 0 < logged[name] < 10, name
    assert {"segm/AP", "segm_A/AP", "segm_B/AP", "bbox_A/AP50"} <= set(logged)
    assert list(tmp_path.glob("events.out.tfevents.*"))
    by_group = json.loads((tmp_path / "inference" / "ap_by_group.json").read_text())
    assert set(by_group) == {"bbox", "segm"} and set(by_group["segm"]) == {"A", "B", "all"}


@pytest.mark.parametrize(("name", "cls"), [("SGD", torch.optim.SGD), ("AdamW", torch.optim.AdamW)])
def test_optimizer_holds_what_is_trained_and_clips(shapes_dataset, tmp_path, name, cls):
    cfg = tiny.data_config(
        shapes_dataset,
        tmp_path,
        *("SOLVER.MASKX_OPTIMIZER", name, "SOLVER.WEIGHT_DECAY", 0.03, "SOLVER.WEIGHT_DECAY_NORM", 0.0),
        *("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.5),
        *("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"),
    )
    model = tiny.build(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    assert isinstance(optimizer, cls)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
    assert all(group["weight_decay"] == 0.03 for group in optimizer.param_groups)
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.full_like(parameter, 7.0)
    optimizer.step()
    assert all(parameter.grad.norm() <= 0.5 + 1e-6 for parameter in trained)


def test_evaluator_reports_on_the_split_of_the_test_if_there_is_one(shapes_dataset, tmp_path):
    cfg = tiny.data_config(shapes_dataset, tmp_path, "DATASETS.CLASSES_WITH_MASKS", "all")
    evaluator = Trainer.build_evaluator(cfg, "shapes_test")
    assert isinstance(evaluator, PartiallySupervisedEvaluator)
    assert len(evaluator.classes_with_masks) == 32
    cfg.defrost()
    cfg.TEST.MASKX_CLASS_SPLIT = str(shapes_dataset.split_file)
    assert len(Trainer.build_evaluator(cfg, "shapes_test").classes_with_masks) == 24


def run(kill_at, config, *flags, number=signal.SIGKILL):
    """Train in a forked process, which is sent a signal before an iteration."""

    class Kill(HookBase):
        def before_step(self):
            if self.trainer.iter == kill_at:
                os.kill(os.getpid(), number)

    class KilledTrainer(command_line.WatchedTrainer):
        def build_hooks(self):
            return [*super().build_hooks(), Kill()]

    def command():
        tiny.forget("shapes_train", "shapes_test", "shapes_train_all_masks")
        command_line.WatchedTrainer = KilledTrainer
        command_line.main(["--config-file", str(config), *flags])

    return run_forked(command)


@pytest.mark.parametrize(
    ("meta_architecture", "number", "status"),
    [
        ("GeneralizedRCNN", signal.SIGKILL, -signal.SIGKILL),
        ("FrozenDetectorRCNN", signal.SIGTERM, 143),
    ],
)
def test_stopped_and_resumed_ends_with_the_weights_of_a_run_that_went_through(
    shapes_dataset, tmp_path, meta_architecture, number, status
):
    overrides = [
        *("MODEL.META_ARCHITECTURE", meta_architecture, "SOLVER.MAX_ITER", 10),
        # It is killed in the middle of the ramp of box supervision.
        *("MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.PROJECTION", 0.3),
        *("MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.START", 2, "MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.WARMUP", 6),
        *("MODEL.ROI_MASK_HEAD.TRANSFER.EMBEDDING_DROPOUT", 0.5),
        *("MODEL.ROI_MASK_HEAD.ROIS_PER_IMAGE", 4),
        *(
            "SOLVER.CHECKPOINT_PERIOD",
            4,
            "DATASETS.TEST",
            (),
            "MODEL.WEIGHTS",
            str(tmp_path / "start.pth"),
        ),
    ]
    configs = {}
    for name in ("through", "killed"):
        cfg = tiny.data_config(shapes_dataset, tmp_path / name, *overrides)
        configs[name] = tmp_path / f"{name}.yaml"
        configs[name].write_text(cfg.dump())
    torch.save({"model": tiny.build(cfg).state_dict()}, tmp_path / "start.pth")

    done = run(-1, configs["through"])
    assert done.returncode == 0, done.stderr[-3000:]
    killed = run(6, configs["killed"], number=number)
    assert killed.returncode == status, killed.stderr[-3000:]
    assert not (tmp_path / "killed" / "model_final.pth").exists()
    assert not list((tmp_path / "killed").glob("*.partial"))
    if number != signal.SIGKILL:
        assert "Traceback" not in killed.stdout + killed.stderr
        assert f"stopped by {number.name} after iteration 6: to continue, add --resume" in killed.stderr
    resumed = run(-1, configs["killed"], "--resume")
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    start_iteration = 4 if number == signal.SIGKILL else 7
    log = (tmp_path / "killed" / "log.txt").read_text()
    assert f"Starting training from iteration {start_iteration}\n" in log

    through, again = (
        torch.load(tmp_path / name / "model_final.pth", weights_only=True) for name in ("through", "killed")
    )
    assert again["iteration"] == through["iteration"] == 9
    start = torch.load(tmp_path / "start.pth", weights_only=True)["model"]
    assert any(not torch.equal(through["model"][name], value) for name, value in start.items())
    for name, value in through["model"].items():
        assert torch.equal(again["model"][name], value), name
