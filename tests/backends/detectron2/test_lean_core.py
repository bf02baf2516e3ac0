"""Training, evaluation and resuming on Detectron2 need none of the packages of the extra ``tools``."""

import json
import subprocess
import sys

import torch

from maskx_d2.runtime.optional_packages import REQUIREMENTS

from . import tiny

HIDDEN = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {modules}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
for name in {modules}:
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(f"{{name}} is not hidden")

import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name in {modules} else find_spec(name, *more)

from maskx_d2.backends.detectron2.command_line import main
main(sys.argv[1:])
"""


def train_net(*arguments):
    code = HIDDEN.format(modules=sorted(REQUIREMENTS))
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_step_an_evaluation_and_a_resumed_step_with_the_tools_hidden(shapes_dataset, tmp_path):
    run = tmp_path / "run"
    cfg = tiny.data_config(
        shapes_dataset,
        run,
        *("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.WEIGHTS", "", "SOLVER.MAX_ITER", 1),
        *("DATASETS.TRAIN", ("shapes_train",), "DATASETS.TEST", ("shapes_test",)),
        *("DATALOADER.NUM_WORKERS", 0, "MODEL.DEVICE", "cpu"),
    )
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert "B: boxes only" in train_net("--config-file", tmp_path / "config.yaml")
    assert json.loads((run / "inference" / "evaluation.json").read_text())
    train_net("--config-file", run / "config.yaml", "--resume", "SOLVER.MAX_ITER", "2")
    assert torch.load(run / "model_final.pth", weights_only=True)["iteration"] == 1
    assert not list(run.glob("events*"))
