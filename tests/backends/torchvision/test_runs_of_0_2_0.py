"""What version 0.2.0 left is read: see tests/runs_0_2_0."""

import maskx_d2
from maskx_d2.commands import main as cli
from maskx_d2.runtime.checkpoints import read_checkpoint

from ...runs_0_2_0.check import check_finds_what_it_found


def test_its_model_finds_what_it_found(runs_0_2_0):
    detector = maskx_d2.load_detector("torchvision/model_final.ckpt")
    check_finds_what_it_found(detector, "torchvision")


def test_it_is_resumed(runs_0_2_0):
    options = [
        "--config=torchvision/config.yaml",
        "--ckpt_path=torchvision/last.ckpt",
        "--trainer.max_steps=3",
    ]
    assert cli.main(["torchvision", "fit", *options]) in (None, 0)
    checkpoint = read_checkpoint("torchvision/model_final.ckpt")
    assert checkpoint["global_step"] == 3 and checkpoint["trained_with_masks"] == [0]
