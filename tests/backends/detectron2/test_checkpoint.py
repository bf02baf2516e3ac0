import collections
import os
import pickle
from argparse import Namespace

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine.hooks import PeriodicCheckpointer
from detectron2.modeling import build_backbone

from maskx_d2.backends.detectron2.checkpoint import (
    Checkpointer,
    ClassList,
    WholeFiles,
    check_before_loading,
    check_classes_of_weights,
    check_weights,
)
from maskx_d2.backends.detectron2.command_line import train_or_evaluate
from maskx_d2.backends.detectron2.trainer import Trainer
from maskx_d2.commands import main as cli

from ...runtime.test_pickles import CODE
from . import tiny


class Command:
    """Unpickled by the ordinary unpickler, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("checkpointer", [DetectionCheckpointer, Checkpointer])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_checkpoint_as_in_the_model_zoo_passes_and_loads(tmp_path, protocol, checkpointer):
    model = tiny.build(tiny.model_config(), seed=1)
    arrays = collections.OrderedDict((n, v.numpy()) for n, v in model.state_dict().items())
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}, protocol))
    check_weights(str(path))
    other = tiny.build(tiny.model_config(), seed=2)
    checkpointer(other).load(str(path))
    for name, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    marker = tmp_path / "ran"
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": Command(str(marker))}}))
    with pytest.raises(ValueError, match=r"evil.pkl is refused: it holds (posix|nt).mkdir"):
        check_weights(str(path))
    with pytest.raises(ValueError, match=r"evil.pkl is refused"):
        check_weights(f"{path}?matching_heuristics=True")
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists()  # it was not harmless


def test_training_evaluation_and_prediction_check_first(tmp_path, shapes_dataset):
    from maskx_d2.backends.detectron2.predict import Detectron2Detector

    marker = tmp_path / "ran"
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(Command(str(marker))))
    cfg = tiny.data_config(shapes_dataset, tmp_path / "out", "MODEL.WEIGHTS", str(path))
    (tmp_path / "config.yaml").write_text(cfg.dump())
    for eval_only in (True, False):
        args = Namespace(
            config_file=str(tmp_path / "config.yaml"), opts=[], eval_only=eval_only, resume=False
        )
        with pytest.raises(ValueError, match="is refused"):
            train_or_evaluate(args)
    with pytest.raises(ValueError, match="is refused"):
        Detectron2Detector.from_config(cfg)
    assert not marker.exists()


def test_a_run_that_resumes_does_not_need_the_weights_it_began_with(tmp_path):
    checkpointer = DetectionCheckpointer(torch.nn.Linear(1, 1), str(tmp_path))
    absent = str(tmp_path / "absent.pkl")
    with pytest.raises(FileNotFoundError):
        check_before_loading(checkpointer, absent, resume=True)
    checkpointer.save("model_0000009")
    check_before_loading(checkpointer, absent, resume=True)
    with pytest.raises(FileNotFoundError):
        check_before_loading(checkpointer, absent, resume=False)


def test_a_checkpoint_that_is_not_there_or_empty_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"MODEL.WEIGHTS: checkpoint .*absent.pth is not a file"):
        check_weights(str(tmp_path / "absent.pth"))
    (tmp_path / "empty.pth").touch()
    with pytest.raises(ValueError, match=r"checkpoint .*empty.pth is empty"):
        check_weights(str(tmp_path / "empty.pth"))


def test_what_torch_would_unpickle_is_refused_without_advice_to_load_it_all_the_same(tmp_path):
    torch.save({"model": {"a": Command(str(tmp_path / "ran"))}}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil.pth is refused: it holds (posix|nt).mkdir") as refused:
        check_weights(str(tmp_path / "evil.pth"))
    assert "weights_only" not in str(refused.value)
    assert not (tmp_path / "ran").exists()


def test_a_run_that_goes_on_reads_its_own_checkpoint_as_data_too(tmp_path):
    checkpointer = DetectionCheckpointer(torch.nn.Linear(1, 1), str(tmp_path))
    checkpointer.save("model_0000009")
    torch.save({"model": Command(str(tmp_path / "ran"))}, tmp_path / "model_0000009.pth")
    with pytest.raises(ValueError, match=r"model_0000009.pth is refused"):
        check_before_loading(checkpointer, "", resume=True)
    assert not (tmp_path / "ran").exists()


def test_what_a_checkpointer_loads_is_what_detectron2_loads(tmp_path):
    """Of Caffe2's Detectron, whose names are matched, and of PyTorch with a query behind the name."""
    from detectron2.model_zoo import get_config

    cfg = get_config("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    stem = build_backbone(cfg).bottom_up.stem
    blobs = {"conv1_w": np.ones((64, 3, 7, 7), np.float32), "res_conv1_bn_s": np.full(64, 2, np.float32)}
    blobs |= {"res_conv1_bn_b": np.zeros(64, np.float32), "conv1_w_momentum": np.float32(1)}
    (tmp_path / "blobs.pkl").write_bytes(pickle.dumps({"blobs": blobs}, 2))
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps(blobs, 2))
    torch.save({"stem.conv1.weight": torch.full((64, 3, 7, 7), 3.0)}, tmp_path / "a.pth")
    for name in ("blobs.pkl", "bare.pkl", "a.pth?matching_heuristics=True"):
        states = []
        for kind in (DetectionCheckpointer, Checkpointer):
            torch.nn.init.zeros_(stem.conv1.weight)
            kind(torch.nn.ModuleDict({"stem": stem})).load(str(tmp_path / name))
            states.append({key: value.clone() for key, value in stem.state_dict().items()})
        assert states[1]["conv1.weight"].min() > 0
        assert all(torch.equal(value, states[0][key]) for key, value in states[1].items())


def test_a_pickle_of_code_is_refused_wherever_one_is_read(tmp_path, shapes_dataset, capsys):
    path = tmp_path / "evil.pkl"
    path.write_bytes(CODE)
    with pytest.raises(ValueError, match=r"evil.pkl is refused: it has an array of 'O8', expected numbers"):
        Checkpointer(torch.nn.Linear(1, 1)).load(str(path))
    cfg = tiny.data_config(shapes_dataset, tmp_path / "out", "MODEL.WEIGHTS", str(path))
    (tmp_path / "config.yaml").write_text(cfg.dump())
    image = next(shapes_dataset.test_images.glob("*.png"))
    model = ["--config-file", tmp_path / "config.yaml", "--weights", path]
    for words in (
        ["convert", path, "--output", tmp_path / "converted"],
        ["predict", *model, "--output", tmp_path / "predicted", image],
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(list(map(str, words)))
        (line,) = capsys.readouterr().err.splitlines()
        assert stopped.value.code == 2 and "evil.pkl is refused: it has an array of 'O8'" in line


@pytest.mark.parametrize(
    "name", ["../evil.pth", "{}/evil.pth", "sub/evil.pth", "evil.pkl", "", "..", "a\0.pth"]
)
def test_last_checkpoint_names_a_pth_in_its_own_folder_or_is_refused(tmp_path, name):
    run = tmp_path / "run"
    (run / "sub").mkdir(parents=True)
    for path in (tmp_path / "evil.pth", run / "sub" / "evil.pth", run / "evil.pkl"):
        torch.save({"model": {}}, path)
    last = run / "last_checkpoint"
    last.write_bytes(name.format(tmp_path).encode("utf-8", "surrogateescape"))
    checkpointer = Checkpointer(torch.nn.Linear(1, 1), str(run))
    message = r"last_checkpoint names .*, expected a .pth file in its own folder"
    with pytest.raises(ValueError, match=message):
        checkpointer.resume_or_load("", resume=True)
    with pytest.raises(ValueError, match=message):
        check_before_loading(checkpointer, "", resume=True)
    last.write_bytes(b"\xe9.pth")
    with pytest.raises(FileNotFoundError, match=r"last_checkpoint names .*, which does not exist"):
        checkpointer.resume_or_load("", resume=True)


def test_last_checkpoint_and_what_it_names_are_no_links_or_pipes(tmp_path):
    run = tmp_path / "run"
    checkpointer = Checkpointer(torch.nn.Linear(1, 1), str(run))
    run.mkdir()
    checkpointer.save("model")
    (run / "model.pth").rename(tmp_path / "model.pth")
    (run / "model.pth").symlink_to(tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"model.pth is a link"):
        checkpointer.resume_or_load("", resume=True)
    last = run / "last_checkpoint"
    last.rename(tmp_path / "last_checkpoint")
    last.symlink_to(tmp_path / "last_checkpoint")
    with pytest.raises(ValueError, match="last_checkpoint is a link"):
        checkpointer.resume_or_load("", resume=True)
    last.unlink()
    os.mkfifo(last)
    with pytest.raises(ValueError, match="last_checkpoint is a device or a pipe"):
        checkpointer.resume_or_load("", resume=True)


def test_weights_that_are_not_finite_are_refused_by_all_that_use_them(tmp_path, shapes_dataset):
    from maskx_d2.backends.detectron2.predict import Detectron2Detector

    path = tmp_path / "model.pth"
    cfg = tiny.data_config(shapes_dataset, tmp_path / "out", "MODEL.WEIGHTS", str(path))
    state = tiny.build(cfg, seed=1).state_dict()
    state["roi_heads.box_predictor.bbox_pred.bias"][3] = float("inf")
    torch.save({"model": state}, path)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    message = "model.pth: roi_heads.box_predictor.bbox_pred.bias has numbers that are NaN or infinite"
    with pytest.raises(ValueError, match=message):
        Detectron2Detector.from_config(cfg)
    args = Namespace(config_file=str(tmp_path / "config.yaml"), opts=[], eval_only=True, resume=False)
    with pytest.raises(ValueError, match=message):
        train_or_evaluate(args)


@pytest.mark.parametrize("content", [{"model": [1]}, {"model": torch.zeros(1)}])
def test_a_checkpoint_whose_model_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a.pth has no weights in 'model', expected names and tensors"):
        Checkpointer(torch.nn.Linear(1, 1)).load(str(tmp_path / "a.pth"))


def test_a_trainer_and_its_hooks_use_this_checkpointer(tmp_path, shapes_dataset):
    trainer = Trainer(tiny.data_config(shapes_dataset, tmp_path))
    hooks = [hook for hook in trainer._hooks if isinstance(hook, PeriodicCheckpointer)]
    assert isinstance(trainer.checkpointer, Checkpointer) and len(hooks) == 1
    assert hooks[0].checkpointer is trainer.checkpointer
    assert set(trainer.checkpointer.checkpointables) == {"trainer", ClassList.KEY}


class Unwritable:
    """Fails after the weights have been written for the most part."""

    def state_dict(self):
        return {"a": torch.zeros(100_000), "b": (i for i in range(3))}


def test_a_checkpoint_is_there_whole_or_not_at_all(tmp_path):
    checkpointer = DetectionCheckpointer(torch.nn.Linear(1, 1), str(tmp_path))
    checkpointer.path_manager = WholeFiles()
    checkpointer.save("first")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert {path.name for path in before} == {"first.pth", "last_checkpoint"}
    checkpointer.add_checkpointable("unwritable", Unwritable())
    for name in ("first", "second"):
        with pytest.raises(TypeError, match="cannot pickle 'generator' object"):
            checkpointer.save(name)
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    # What Detectron2 reads, it reads as ever.
    other = DetectionCheckpointer(torch.nn.Linear(1, 1), str(tmp_path))
    other.path_manager = WholeFiles()
    other.resume_or_load("", resume=True)
    assert torch.equal(other.model.weight, checkpointer.model.weight)


def test_a_checkpoint_of_other_classes_is_refused_where_it_says_so(tmp_path):
    checkpointer = DetectionCheckpointer(torch.nn.Linear(1, 1), str(tmp_path))
    checkpointer.save("silent")
    checkpointer.add_checkpointable(ClassList.KEY, ClassList(lambda: ["cat", "dog"], folder="out"))
    checkpointer.save("model")
    check_classes_of_weights(str(tmp_path / "model.pth"), ["cat", "dog"])
    for path in ("", str(tmp_path / "silent.pth"), "detectron2://a/model.pkl"):
        check_classes_of_weights(path, ["cow"])
    message = "knows other classes: number 1 is 'cat', expected 'dog'"
    with pytest.raises(ValueError, match=message):
        check_classes_of_weights(str(tmp_path / "model.pth"), ["dog", "cat"])
    other = DetectionCheckpointer(torch.nn.Linear(1, 1), str(tmp_path))
    other.add_checkpointable(ClassList.KEY, ClassList(lambda: ["dog", "cat"], folder="out"))
    with pytest.raises(ValueError, match=message):
        other.resume_or_load("", resume=True)
    with pytest.raises(ValueError, match="knows 2 classes, expected 3"):
        check_classes_of_weights(str(tmp_path / "model.pth"), ["cat", "dog", "cow"])
