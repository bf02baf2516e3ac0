import collections
import os
import pickle

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer

from maskx_d2.hosts.detectron2.checkpoint import (
    ClassList,
    WholeFiles,
    check_before_loading,
    check_classes_of_weights,
    check_weights,
)
from maskx_d2.hosts.detectron2.command_line import train_or_evaluate

from . import tiny


class Command:
    """Unpickled by the ordinary unpickler, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_checkpoint_as_in_the_model_zoo_passes_and_loads(tmp_path, protocol):
    model = tiny.build(tiny.model_config(), seed=1)
    arrays = collections.OrderedDict((n, v.numpy()) for n, v in model.state_dict().items())
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}, protocol))
    check_weights(str(path))
    other = tiny.build(tiny.model_config(), seed=2)
    DetectionCheckpointer(other).load(str(path))
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
    from argparse import Namespace

    from maskx_d2.hosts.detectron2.predict import Detectron2Detector

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
        Detectron2Detector(cfg)
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
    with pytest.raises(FileNotFoundError, match=r"MODEL.WEIGHTS: checkpoint .*absent.pth is no file"):
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
