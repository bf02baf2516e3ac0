import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
import torchvision
from torch import nn

import maskx_d2
from maskx_d2.backends.torchvision import detections, training
from maskx_d2.backends.torchvision.callbacks import Checkpoints, RepeatableSteps, WholeFiles
from maskx_d2.backends.torchvision.checkpoint import load_detector_weights
from maskx_d2.backends.torchvision.data_module import CocoDataModule
from maskx_d2.backends.torchvision.training import TrainingModule
from maskx_d2.commands import main as cli
from maskx_d2.data.pycocotools_coco import read_coco
from maskx_d2.data.rle import encode
from maskx_d2.demo import shapes

from ...data import awkward, exports
from ...evaluation import synthetic
from ...forked import Forked
from ...runtime.test_lock import held
from ...screen import assert_says_nothing_but_bars
from . import tiny

OPTIONS = {name: value for name, value in tiny.MODEL.items() if name != "num_classes"}
BEYOND_THE_PAPER = {
    "embedding_dropout": 0.5,
    "rois_per_image": 4,
    # Killed after the second of its steps, a run goes on in the middle of the ramp.
    "box_supervision": '{"projection": 0.3, "known_background": 0.3, "start": 1, "warmup": 4}',
}


def training_module(**options):
    return TrainingModule(
        class_names=["a", "b", "c", "d"],
        category_ids=[2, 3, 5, 9],
        classes_with_masks=[0, 2],
        **{**OPTIONS, **options},
    )


# ---- The schedule ----


@pytest.mark.parametrize("schedule", ["multistep", "cosine"])
def test_learning_rates_are_those_of_the_formula(schedule):
    module = training_module(
        learning_rate=0.5, warmup_steps=10, lr_schedule=schedule, milestones=[20, 30], predictor="agnostic"
    )
    module.trainer = SimpleNamespace(estimated_stepping_batches=40)
    configured = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    assert configured["lr_scheduler"]["interval"] == "step"
    for step in range(40):
        expected = 0.5
        if step < 10:
            expected *= 0.001 * (1 - step / 10) + step / 10
        if schedule == "cosine":
            expected *= (1 + math.cos(math.pi * step / 40)) / 2
        else:
            expected *= 1 if step < 20 else 0.1 if step < 30 else 0.01
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_only_what_is_trained_is_given_to_the_optimizer(name, tmp_path):
    module = training_module(optimizer=name, detector=str(tmp_path / "stage1.ckpt"))
    optimizer = module.configure_optimizers()["optimizer"]
    assert type(optimizer).__name__ == name
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert given == {id(p) for n, p in module.named_parameters() if n.startswith("model.roi_heads.mask_")}


def test_a_loss_that_is_not_finite_stops_the_run(monkeypatch):
    module = training_module()
    monkeypatch.setattr(
        type(module.model), "forward", lambda *args: {"loss_mask": torch.tensor(float("nan"))}
    )
    with pytest.raises(FloatingPointError, match=r"the loss is not finite at step 0: \{'loss_mask': nan\}"):
        module.training_step((tiny.images(1), [tiny.target([1])]), 0)


def test_a_module_rebuilt_from_its_hyperparameters_needs_no_pretrained_weights(monkeypatch):
    """And has the normalisation and the frozen layers that they had brought."""
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    state = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(type(weights), "get_state_dict", lambda *args, **kwargs: state)
    module = training_module(weights_backbone="DEFAULT", norm=None)
    monkeypatch.undo()
    again = TrainingModule(**module.hparams)
    again.load_state_dict(module.state_dict())
    trained = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (module, again)]
    assert trained[0] == trained[1] and not any(".layer1." in name for name in trained[0])
    assert type(again.model.backbone.body.bn1).__name__ == "FrozenBatchNorm2d"


# ---- The detector of stage-wise training ----


def test_a_detector_of_torchvision_loads(tmp_path):
    stock = torchvision.models.detection.fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=5
    )
    torch.save(stock.state_dict(), tmp_path / "stock.pth")
    model = tiny.build(depth=50, norm=None, fpn_channels=256, box_head_dim=1024, anchor_sizes=None,
                       anchor_aspect_ratios=(0.5, 1.0, 2.0))  # fmt: skip
    load_detector_weights(model, str(tmp_path / "stock.pth"))
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in stock.state_dict().items())


def test_a_file_that_is_no_such_detector_is_an_error(tmp_path):
    model = tiny.build()
    with pytest.raises(FileNotFoundError, match=r"checkpoint .*absent.ckpt is not a file"):
        load_detector_weights(model, str(tmp_path / "absent.ckpt"))
    torch.save(tiny.build(num_classes=8).state_dict(), tmp_path / "other.pth")
    with pytest.raises(
        ValueError, match=r"other.pth has \(8, 12\) for .*cls_score.weight, expected \(5, 12\)"
    ):
        load_detector_weights(model, str(tmp_path / "other.pth"))
    torch.save({"state_dict": {}}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match=r"empty.pth has nothing for backbone"):
        load_detector_weights(model, str(tmp_path / "empty.pth"))
    with pytest.raises(ValueError, match=r"detector is 'x.ckpt', but predictor is None"):
        training_module(predictor=None, detector="x.ckpt")


class Malicious:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_a_detector_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Malicious()}, tmp_path / "bad.ckpt")
    with pytest.raises(
        ValueError, match=r"checkpoint .*bad.ckpt is refused: it holds \w+.system, expected"
    ):
        load_detector_weights(tiny.build(), str(tmp_path / "bad.ckpt"))
    assert not (tmp_path / "executed").exists()


# ---- Evaluation ----


class Detections(nn.Module):
    """Stands for a model: it says what is in a list of COCO results."""

    def __init__(self, results, category_ids):
        super().__init__()
        self.results, self.category_ids = results, category_ids
        self.image_ids = []

    def forward(self, images):
        found_in = []
        for image in images:
            image_id = self.image_ids.pop(0)
            found = [r for r in self.results if r["image_id"] == image_id]
            boxes = torch.tensor([r["bbox"] for r in found], dtype=torch.float64).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            masks = [mask_util.decode(r["segmentation"]) for r in found]
            masks = torch.from_numpy(np.array(masks).reshape(-1, 1, *image.shape[-2:])).double()
            found_in.append(
                {
                    "boxes": boxes,
                    "labels": torch.tensor(
                        [self.category_ids.index(r["category_id"]) + 1 for r in found], dtype=torch.int64
                    ),
                    "scores": torch.tensor([r["score"] for r in found], dtype=torch.float64),
                    "masks": masks,
                }
            )
        return found_in


def evaluate(content, results, folder, group_a, *, category_ids=None, **options):
    """Run the evaluation of the training module on a model that finds what ``results`` say."""
    (folder / "truth.json").write_text(json.dumps(content))
    ids = list(synthetic.CATEGORY_IDS)
    module = TrainingModule(
        class_names=[f"class {i}" for i in ids],
        category_ids=ids,
        classes_with_masks=group_a,
        **{**OPTIONS, **options},
    )
    stub = Detections(results, ids)
    module.trainer = SimpleNamespace(
        sanity_checking=False,
        is_global_zero=True,
        world_size=1,
        default_root_dir=folder,
        datamodule=SimpleNamespace(
            val_coco=read_coco(folder / "truth.json"),
            val_json=folder / "truth.json",
            val_images=folder,
            val_category_ids=category_ids or ids,
        ),
    )
    logged = {}
    module.log_dict = lambda values, **kwargs: logged.update(values)
    module.print = print
    module.on_validation_epoch_start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "detect", lambda model, images: stub(images))
        # Its masks are of the image's size.
        patch.setattr(
            detections, "masks_as_rle", lambda masks, boxes, size: list(map(encode, masks.numpy()))
        )
        for image in content["images"]:
            stub.image_ids.append(image["id"])
            pixels = torch.zeros(3, image["height"], image["width"])
            module.validation_step(([pixels], [{"image_id": torch.tensor(image["id"])}]), 0)
    module.on_validation_epoch_end()
    return logged, json.loads((folder / "inference" / "ap_by_group.json").read_text())


def test_ap_on_each_side_equals_pycocotools_on_filtered_json_files(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="maskx_d2")
    content = synthetic.ground_truth()
    results = synthetic.detections(content)
    logged, by_group = evaluate(content, results, tmp_path, [1, 4])
    ids = {"A": [3, 10], "B": [2, 5, 9], "all": list(synthetic.CATEGORY_IDS)}
    for task in ("bbox", "segm"):
        for group, kept in ids.items():
            of_group = [r for r in results if r["category_id"] in kept]
            expected = synthetic.pycocotools_metrics(synthetic.only(content, kept), of_group, task)
            assert by_group[task][group] == pytest.approx(expected, abs=1e-9)
            name = task if group == "all" else f"{task}_{group}"
            assert {m: logged[f"{name}/{m}"] for m in expected} == pytest.approx(expected, abs=1e-9)
    assert by_group["segm"]["A"]["AP"] > 5
    assert "A: with masks" in caplog.text
    written = json.loads((tmp_path / "inference" / "coco_instances_results.json").read_text())
    assert len(written) == len(results)
    assert all(set(r) == {"image_id", "category_id", "bbox", "score", "segmentation"} for r in written)


def test_an_annotation_of_id_0_is_matched_like_any_other(tmp_path):
    content = synthetic.ground_truth()
    results = synthetic.detections(content)
    _, expected = evaluate(content, results, tmp_path, [1, 4])
    for annotation in content["annotations"]:
        annotation["id"] -= 1
    assert evaluate(content, results, tmp_path, [1, 4])[1] == expected


def test_without_detections_ap_is_zero(tmp_path):
    _, by_group = evaluate(synthetic.ground_truth(), [], tmp_path, [1, 4])
    assert by_group["segm"]["A"]["AP"] == by_group["bbox"]["B"]["AP"] == 0


def test_where_all_classes_have_masks_there_are_no_two_sides(tmp_path):
    content = synthetic.ground_truth()
    logged, by_group = evaluate(content, synthetic.detections(content), tmp_path, range(5))
    assert {name.split("/")[0] for name in logged} == {"bbox", "segm"}
    assert by_group["segm"]["B"]["AP"] is None


# ---- Runs ----


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return shapes.generate(tmp_path_factory.mktemp("shapes"), num_train=10, num_test=4, seed=0)


def command(dataset, folder, *options, steps=6):
    data = {
        "train_json": dataset.train_json,
        "train_images": dataset.train_images,
        "val_json": dataset.test_json,
        "val_images": dataset.test_images,
        "classes_with_masks": dataset.split_file,
        "num_workers": 0,
    }
    trainer = {"max_steps": steps, "default_root_dir": folder, "log_every_n_steps": 1, "accelerator": "cpu"}
    settings = {
        **{f"data.{name}": value for name, value in data.items()},
        **{f"trainer.{name}": value for name, value in trainer.items()},
        **{f"model.{name}": value for name, value in {**OPTIONS, **BEYOND_THE_PAPER}.items()},
        "model.warmup_steps": 2,
        "checkpoint_period": 2,
    }
    words = [f"--{name}={value}" for name, value in settings.items()]
    return [sys.executable, "-m", "maskx_d2", "torchvision", "fit", *words, *map(str, options)]


def start(words):
    """Run a command line of :func:`command` in a forked process."""
    return Forked(lambda: cli.main(words[3:]))


def run(words):
    done = start(words)
    assert done.wait() == 0, done.stderr[-3000:]
    return done


def weights(folder):
    return torch.load(folder / "model_final.ckpt", weights_only=True)["state_dict"]


def assert_same_weights(folder, other):
    expected, found = weights(folder), weights(other)
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    """The folder and the output of a run of six steps."""
    folder = tmp_path_factory.mktemp("run") / "through"
    return folder, run(command(dataset, folder)).stdout


def test_a_run_leaves_the_files_that_a_run_on_detectron2_leaves(finished):
    folder, printed = finished
    assert "A: with masks" in printed and "B: boxes only" in printed
    for name in ("config.yaml", "model_final.ckpt", "last.ckpt", "inference/coco_instances_results.json"):
        assert (folder / name).exists(), name
    assert list(folder.glob("events.out.tfevents.*"))
    by_group = json.loads((folder / "inference" / "ap_by_group.json").read_text())
    assert {task: set(of_group) for task, of_group in by_group.items()} == {
        "segm": {"A", "B", "all"},
        "bbox": {"A", "B", "all"},
    }
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    losses = {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
    losses |= {"loss_mask_projection", "loss_mask_known_background"}
    steps = [line for line in lines if "total_loss" in line]
    assert [line["iteration"] for line in steps] == list(range(6))
    for line in steps:
        assert set(line) == {"iteration", "total_loss", "lr", *losses}
        assert line["total_loss"] == pytest.approx(sum(line[name] for name in losses), rel=1e-5)
    assert "segm_B/AP" in lines[-1] and "bbox/AP50" in lines[-1]


def test_a_checkpoint_holds_all_that_is_needed_to_use_the_model(finished, dataset):
    folder, _ = finished
    module = TrainingModule.from_checkpoint(folder / "model_final.ckpt")
    assert module.hparams.class_names == list(shapes.CLASS_NAMES)
    assert len(module.hparams.classes_with_masks) == 24
    with torch.no_grad():
        (found,) = module.model.eval()(tiny.images(1))
    assert set(found) == {"boxes", "labels", "scores", "masks"}


def test_a_run_that_was_killed_and_resumed_ends_with_the_same_weights(finished, dataset, tmp_path):
    folder = tmp_path / "killed"
    killed = start(command(dataset, folder))
    deadline = time.monotonic() + 120
    # A checkpoint is written every two steps.
    while not (folder / "last.ckpt").exists():
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (folder / "model_final.ckpt").exists()
    run(command(dataset, folder, "--ckpt_path", folder / "last.ckpt"))
    assert_same_weights(finished[0], folder)


def test_a_run_that_ctrl_c_stops_says_how_to_go_on_and_does(finished, dataset, tmp_path):
    folder = tmp_path / "stopped"
    # Without a checkpoint of its own before.
    words = command(dataset, folder, "--checkpoint_period=100")
    stopped = start(words)
    deadline = time.monotonic() + 120
    while not (folder / "metrics.json").exists():
        assert stopped.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    stopped.send_signal(signal.SIGINT)
    status, printed = stopped.wait(), stopped.stderr
    assert status == 130, printed
    assert "stopped by SIGINT after step" in printed and "Traceback" not in printed
    assert f"add --ckpt_path {folder / 'last.ckpt'}" in printed
    assert not (folder / "model_final.ckpt").exists() and not list(folder.glob("*.partial"))
    run([*words, "--ckpt_path", str(folder / "last.ckpt")])
    assert_same_weights(finished[0], folder)


def test_a_folder_has_one_run(finished, dataset, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    elsewhere = finished[0] / "last.ckpt"
    for options in ((), ("--ckpt_path", elsewhere)):
        with pytest.raises(SystemExit) as stopped:
            cli.main(command(dataset, folder, *options)[3:])
        assert stopped.value.code == 2
        assert f"{folder} holds last.ckpt of an earlier run: continue" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    (folder / "mine.ckpt").write_text("mine")
    run(command(dataset, folder, "--overwrite=true", steps=1))
    assert (folder / "mine.ckpt").read_text() == "mine"
    steps = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert {line["iteration"] for line in steps if "total_loss" in line} == {0}
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 1


def refused(capsys, words):
    """The sentence that a command line ends with."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_folder_that_another_run_writes_to_is_refused(finished, dataset, tmp_path, capsys):
    folder = tmp_path / "run"
    weights = finished[0] / "model_final.ckpt"
    with held(folder) as process:
        before = sorted(folder.iterdir())
        for options in ((), ("--overwrite=true",), ("--ckpt_path", finished[0] / "last.ckpt")):
            printed = refused(capsys, command(dataset, folder, *options)[3:])
            assert f"run is being written to by process {process.pid} on " in printed
        evaluation = ["validate" if word == "fit" else word for word in command(dataset, folder)[3:]]
        printed = refused(capsys, [*evaluation, "--ckpt_path", str(weights)])
        assert f"run is being written to by process {process.pid} on " in printed
        assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.parametrize(
    "name", ["log.txt", "config.yaml", "hparams.yaml", "metrics.json", "last.ckpt", "inference"]
)
def test_links_and_pipes_in_the_folder_of_a_run_are_refused(dataset, tmp_path, capsys, kind, name):
    folder, kept = tmp_path / "run", tmp_path / "kept"
    folder.mkdir()
    kept.write_text("kept")
    os.mkfifo(folder / name) if kind == "pipe" else (folder / name).symlink_to(kept)
    for options in ((), ("--overwrite=true",)):
        printed = refused(capsys, command(dataset, folder, *options)[3:])
        assert f"run/{name} is a {'link' if kind == 'link' else 'device or a pipe'}" in printed
    assert kept.read_text() == "kept" and [path.name for path in folder.iterdir()] == [name]


@pytest.mark.parametrize("name", ["config.yaml", "model_final.ckpt"])
def test_a_new_run_does_not_replace_what_it_begins_with(finished, dataset, tmp_path, capsys, name):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    before = (folder / name).read_bytes()
    option = "--config" if name == "config.yaml" else "--model.detector"
    backend, subcommand, *words = command(dataset, folder, "--overwrite=true")[3:]
    words = [backend, subcommand, option, str(folder / name), *words]
    assert f"the output would overwrite its input {folder / name}:" in refused(capsys, words)
    assert (folder / name).read_bytes() == before


def test_the_weights_are_saved_before_an_evaluation_that_fails(dataset, tmp_path):
    folder = tmp_path / "run"
    (tmp_path / "images").mkdir()
    for path in dataset.test_images.iterdir():
        shutil.copy(path, tmp_path / "images")
    last = sorted((tmp_path / "images").iterdir())[-1]
    last.write_bytes(last.read_bytes()[:60])
    words = command(dataset, folder, f"--data.val_images={tmp_path / 'images'}", steps=2)
    done = start(words)
    assert done.wait() == 2 and f"{last} cannot be read as an image" in done.stderr.splitlines()[-1]
    assert (folder / "model_final.ckpt").exists() and (folder / "last.ckpt").exists()
    last.unlink()
    done = start([*words, "--overwrite=true"])
    assert done.wait() == 2 and f"image {last} does not exist" in done.stderr.splitlines()[-1]
    # That was seen before anything of the run before was taken away.
    assert (folder / "model_final.ckpt").exists() and (folder / "last.ckpt").exists()


def test_validate_gives_the_figures_of_the_end_of_training(finished, dataset, tmp_path):
    folder, _ = finished
    words = command(dataset, tmp_path / "again", "--ckpt_path", folder / "model_final.ckpt")
    words[words.index("fit")] = "validate"
    run([word for word in words if not word.startswith("--checkpoint_period")])
    results = [
        json.loads((f / "inference" / "ap_by_group.json").read_text()) for f in (folder, tmp_path / "again")
    ]
    assert results[0] == results[1]


def test_validate_needs_a_checkpoint_and_leaves_a_runs_own_files_alone(finished, dataset, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder, symlinks=True)
    before = {name: (folder / name).read_bytes() for name in ("config.yaml", "metrics.json")}
    words = [w for w in command(dataset, folder)[3:] if not w.startswith("--checkpoint_period")]
    words[words.index("fit")] = "validate"
    with pytest.raises(SystemExit):
        cli.main(words)
    assert "--ckpt_path is not given, expected the checkpoint to evaluate" in capsys.readouterr().err
    cli.main([*words, "--ckpt_path", str(folder / "last.ckpt")])
    assert before == {name: (folder / name).read_bytes() for name in before}


def test_what_a_killed_run_and_earlier_versions_have_left_does_not_stop_one_that_goes_on(tmp_path):
    (tmp_path / "model_0000002.ckpt").write_text("kept")
    (tmp_path / "last.ckpt").symlink_to("model_0000002.ckpt")
    (tmp_path / "last.ckpt.0a1b2c3d.partial").touch()
    trainer = SimpleNamespace(is_global_zero=True, ckpt_path="last.ckpt")
    Checkpoints(tmp_path, period=1).on_fit_start(trainer, None)
    assert [path.name for path in tmp_path.iterdir()] == ["model_0000002.ckpt"]
    WholeFiles().save_checkpoint({"a": 1}, tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True) == {"a": 1}


def test_parts_of_a_step_have_random_numbers_of_their_own():
    trainer = SimpleNamespace(global_step=3, accumulate_grad_batches=2, world_size=1, global_rank=0)
    callback, drawn = RepeatableSteps(seed=1), []
    for global_step, batch in ((3, 6), (4, 7), (4, 8), (5, 9)):
        trainer.global_step = global_step
        callback.on_train_batch_end(trainer, None, None, None, batch)
        drawn.append(torch.rand(()).item())
    assert len(set(drawn)) == 4


def test_two_processes_train_one_model_and_evaluate_every_image_once(dataset, tmp_path):
    options = ("--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.limit_train_batches=2")
    words = command(dataset, tmp_path / "ddp", *options, steps=2)
    # Not forked: Lightning starts the second process as the first was started.
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    data, *between, last = done.stdout.strip().split("\n\n")
    assert re.fullmatch(
        r"Training on .*train.json: \d+ images; A: 24 classes, \d+ objects, \d+ with a mask; "
        r"B, boxes only: 8 classes, \d+ objects(; not used: .*)?\nAP on .*test.json, with at most 100 .*",
        data,
    )
    assert len(between) == 1 and between[0].count("| B: boxes only |") == 2
    assert last.startswith(f"In {tmp_path / 'ddp'}:\n  model_final.ckpt ") and "log.txt" in last
    assert_says_nothing_but_bars(done.stderr, "training", "evaluating")
    assert "evaluating" not in done.stdout
    log = (tmp_path / "ddp" / "log.txt").read_text()
    assert "Starting with 2 processes" in log and "sync_dist" not in log
    results = json.loads((tmp_path / "ddp" / "inference" / "coco_instances_results.json").read_text())
    keys = [(r["image_id"], r["category_id"], r["score"], *r["bbox"]) for r in results]
    assert len(keys) == len(set(keys))
    assert (tmp_path / "ddp" / "model_final.ckpt").exists()


def test_a_signal_to_one_process_stops_all_of_them(dataset, tmp_path):
    folder = tmp_path / "ddp"
    words = command(dataset, folder, "--trainer.devices=2", "--trainer.strategy=ddp", steps=1000)
    words += ["--checkpoint_period=1000"]
    run_process = subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not (folder / "metrics.json").exists():
        assert run_process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    (child,) = subprocess.check_output(["pgrep", "-P", str(run_process.pid)], text=True).split()
    os.kill(int(child), signal.SIGTERM)
    _, printed = run_process.communicate(timeout=120)
    assert run_process.returncode == 143, printed
    step = torch.load(folder / "last.ckpt", weights_only=True)["global_step"]
    assert step > 0 and step % 20 == 0 and f"stopped by SIGTERM after step {step}: to resume" in printed


def test_stage_2_trains_the_mask_branch_on_the_detector_of_stage_1(dataset, tmp_path):
    one, two = tmp_path / "stage1", tmp_path / "stage2"
    run(command(dataset, one, "--model.predictor=null", steps=2))
    assert not any("mask" in name for name in weights(one))
    assert set(json.loads((one / "inference" / "ap_by_group.json").read_text())) == {"bbox"}
    run(command(dataset, two, f"--model.detector={one / 'model_final.ckpt'}", steps=2))
    assert all(torch.equal(weights(two)[name], value) for name, value in weights(one).items())
    assert set(weights(two)) > set(weights(one))


def test_users_mistakes_end_with_one_sentence(finished, dataset, tmp_path, capsys):
    boxes_only = tmp_path / "boxes_only.txt"
    boxes_only.write_text("\n".join(shapes.BOXES_ONLY))
    cases = [
        (["--model.depth=20"], "depth is 20, expected one of 18, 34, 50, 101, 152"),
        (["--data.train_json=absent.json"], "annotation file absent.json is not a file"),
        (["--model.detector=absent.ckpt"], "checkpoint absent.ckpt is not a file"),
        ([f"--data.classes_with_masks={boxes_only}"], "expected at least one to learn masks from"),
        (["--model.dephts=50"], "dephts"),
        (["--model.weights_backbone=FOO"], "weights_backbone is 'FOO', expected one of 'IMAGENET1K_V1'"),
        (["--trainer.enable_checkpointing=false"], "enable_checkpointing=False"),
        (
            ["--ckpt_path", finished[0] / "model_final.ckpt"],
            "model_final.ckpt holds only weights, expected last",
        ),
    ]
    for options, message in cases:
        with pytest.raises(SystemExit) as stopped:
            cli.main(command(dataset, tmp_path / "out", *options)[3:])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_classes_trained_with_masks_are_those_of_the_training_and_not_of_the_evaluation(tmp_path):
    dataset = shapes.generate(tmp_path / "data", num_train=6, num_test=2, seed=0)
    content = json.loads((dataset.root / "annotations" / "train_all_masks.json").read_text())
    with_masks = sorted({a["category_id"] - 1 for a in content["annotations"] if a.get("segmentation")})
    options = {
        "data.train_json": dataset.root / "annotations" / "train_all_masks.json",
        "data.train_images": dataset.root / "train",
        "data.val_json": dataset.root / "annotations" / "test.json",
        "data.val_images": dataset.root / "test",
        "data.class_split": dataset.split_file,
        "data.num_workers": 0,
        "data.batch_size": 2,
        "trainer.default_root_dir": tmp_path / "run",
        "trainer.max_steps": 1,
    } | {f"model.{name}": value for name, value in OPTIONS.items()}
    assert cli.main(["torchvision", "fit", *(f"--{k}={v}" for k, v in options.items())]) in (None, 0)
    checkpoint = torch.load(tmp_path / "run" / "model_final.ckpt", weights_only=True)
    assert checkpoint["trained_with_masks"] == with_masks
    assert len(checkpoint["hyper_parameters"]["classes_with_masks"]) == 24
    detector = maskx_d2.load_detector(tmp_path / "run" / "model_final.ckpt")
    assert detector.style.with_masks == {i + 1 for i in with_masks}
    checkpoint["trained_with_masks"] = [32]
    torch.save(checkpoint, tmp_path / "changed.ckpt")
    with pytest.raises(ValueError, match=r"changed.ckpt has trained_with_masks .*, expected indices of"):
        maskx_d2.load_detector(tmp_path / "changed.ckpt")


@pytest.mark.parametrize("renumber", [lambda c: c - 1, lambda c: c + 100, lambda c: 20 - c])
def test_the_ids_of_the_validation_file_change_no_figure(tmp_path, renumber):
    content = synthetic.ground_truth()
    results = synthetic.detections(content)
    (tmp_path / "a").mkdir()
    _, expected = evaluate(content, results, tmp_path / "a", [1, 4])
    train = tmp_path / "a" / "truth.json"
    for record in content["categories"]:
        record["id"] = renumber(record["id"])
    for annotation in content["annotations"]:
        annotation["category_id"] = renumber(annotation["category_id"])
    (tmp_path / "b").mkdir()
    val = tmp_path / "b" / "truth.json"
    val.write_text(json.dumps(content))
    data = CocoDataModule(train, train.parent, val, val.parent)
    assert data.val_category_ids == [renumber(c) for c in synthetic.CATEGORY_IDS]
    _, found = evaluate(content, results, tmp_path / "b", [1, 4], category_ids=data.val_category_ids)
    for task, by_group in expected.items():
        for group, values in by_group.items():
            assert found[task][group] == pytest.approx(values, nan_ok=True)
    written = json.loads((tmp_path / "b" / "inference" / "coco_instances_results.json").read_text())
    assert {r["category_id"] for r in written} <= set(data.val_category_ids)


def test_box_supervision_counts_the_optimiser_steps_of_the_run():
    """Four batches make one step, and the weights are those of a run that has ended."""
    module = TrainingModule(
        class_names=["a"], category_ids=[1], classes_with_masks=[0], **OPTIONS,
        box_supervision={"projection": 1.0, "start": 2},
    )  # fmt: skip
    supervision = module.model.roi_heads.mask_box_supervision
    supervision.set_steps(1000)
    ramps = []
    for step in range(3):
        module.trainer = SimpleNamespace(global_step=step)
        for _ in range(4):
            module.on_train_batch_start(None, 0)
            ramps.append(float(supervision._ramp()))
            supervision.steps += 1  # as forward() does
    assert ramps == [0.0] * 8 + [1.0] * 4


def test_masks_that_are_all_crowd_regions_are_refused_with_the_reason(tmp_path):
    content = exports.cvat_masks()
    path = awkward.write(tmp_path, content)
    module = TrainingModule(
        class_names=["cat", "dog"], category_ids=[1, 2], classes_with_masks=[0, 1], **OPTIONS
    )
    data = CocoDataModule(path, tmp_path, path, tmp_path, num_workers=0)
    module.trainer = SimpleNamespace(datamodule=data, ckpt_path=None)
    message = r"has a mask .*; 2 annotations are crowd regions \(iscrowd 1\).*check-dataset --fix-crowd"
    with pytest.raises(ValueError, match=message):
        module.setup("fit")
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    awkward.write(tmp_path, content)
    data = CocoDataModule(path, tmp_path, path, tmp_path, num_workers=0)
    with pytest.raises(ValueError, match=r"has no image with an object, .*; 4 annotations are crowd"):
        data.train_dataloader()


def test_more_than_100_objects_in_an_image_count_if_the_model_finds_as_many(tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="maskx_d2")
    category_id = synthetic.CATEGORY_IDS[0]
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": 160, "height": 160}],
        "annotations": [
            {
                "id": i + 1,
                "image_id": 1,
                "category_id": category_id,
                "bbox": [10.0 * (i % 15), 10.0 * (i // 15), 8.0, 8.0],
            }
            for i in range(150)
        ],
        "categories": [{"id": i, "name": f"class {i}"} for i in synthetic.CATEGORY_IDS],
    }
    empty = {
        "size": [160, 160],
        "counts": mask_util.encode(np.zeros((160, 160), np.uint8, order="F"))["counts"],
    }
    results = [{**a, "score": 0.9, "segmentation": empty} for a in content["annotations"]]
    found = {}
    for limit in (100, 150):
        folder = tmp_path / str(limit)
        folder.mkdir()
        _, found[limit] = evaluate(content, results, folder, [0], box_detections_per_img=limit)
    assert found[150]["bbox"]["all"]["AP"] == pytest.approx(100) and found[100]["bbox"]["all"]["AP"] < 70
    (warning,) = (record.getMessage() for record in caplog.records)
    assert warning.startswith("1 of 1 images have more than 100 objects, but only the best 100 detections")
