"""Two processes, of which one never sees a mask, and the other images that are labelled in part."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from maskx_d2.backends.detectron2.labelled_classes import LabelledClasses

from ... import ranks
from . import tiny

STEPS = 5
REPOSITORY = Path(__file__).resolve().parents[3]


BOX_SUPERVISION = [
    *("MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.PROJECTION", 0.3),
    *("MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.KNOWN_BACKGROUND", 0.3),
    *("MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.PAIRWISE", 0.3, "MODEL.ROI_MASK_HEAD.TRAIN_ROIS", "both"),
]


CASES = {
    (meta_architecture, supervision): [*options, "MODEL.META_ARCHITECTURE", meta_architecture]
    for meta_architecture in ("FrozenDetectorRCNN", "GeneralizedRCNN")
    for supervision, options in (("masks", []), ("box supervision", BOX_SUPERVISION))
}


def _worker(rank, folder):
    ranks.join(rank, folder)
    outcomes = {case: _trained(rank, options) for case, options in CASES.items()}
    torch.save(outcomes, f"{folder}/{rank}.pth")
    ranks.leave()


def _trained(rank, options):
    """The model's state, the mask loss of each step, and the names of what has changed."""
    # All levels of the FPN are read, as in the COCO configs: DDP wants a gradient for all of them.
    overrides = [
        *tiny.ALL_LEVELS,
        *("MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16], [32], [64], [128]]),
        *("MODEL.ROI_HEADS.IN_FEATURES", ["p2"]),
        *options,
    ]
    model = tiny.build(tiny.model_config(*overrides), seed=0)
    model.load_state_dict(model.state_dict())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    # As Detectron2 makes it: a parameter without a gradient on one of the ranks would hang the others.
    parallel = DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    has_mask = rank == 0
    mask_losses = []
    for step in range(STEPS):
        inputs = tiny.batch(tiny.instances([0, 1], [has_mask] * 2), tiny.instances([2] if step % 2 else []))
        inputs[1]["instances"].gt_has_mask = torch.full((step % 2,), has_mask)
        # One rank has images that label all classes, the other some of them.
        is_labelled = torch.tensor([True, True, True, not has_mask])
        for image in inputs:
            length = len(image["instances"])
            image["instances"].gt_labelled_classes = LabelledClasses(is_labelled, length)
        losses = tiny.losses(parallel, inputs, seed=10 * step + rank)
        mask_losses.append(losses["loss_mask"].item())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    return model.state_dict(), mask_losses, sorted(changed)


@pytest.fixture(scope="module")
def of_both_ranks(tmp_path_factory):
    """What each has at the end of each case."""
    folder = tmp_path_factory.mktemp("ranks")
    ranks.run(_worker, str(folder))
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", CASES, ids=" and ".join)
def test_a_rank_without_masks_trains_along_and_both_stay_equal(of_both_ranks, case):
    (first, losses, changed), (second, no_losses, _) = (of_rank[case] for of_rank in of_both_ranks)
    assert all(loss > 0 for loss in losses) and no_losses == [0] * STEPS
    assert any(name.startswith("roi_heads.mask_head.predictor.transfer") for name in changed)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize(("told", "iterations"), [("1", 30), ("parent", 8)])
def test_a_signal_to_one_process_stops_all_of_them(shapes_dataset, tmp_path, told, iterations):
    cfg = tiny.data_config(
        shapes_dataset,
        tmp_path / "run",
        *("SOLVER.MAX_ITER", iterations, "SOLVER.CHECKPOINT_PERIOD", 1000),
        *("MODEL.WEIGHTS", str(tmp_path / "start.pth"), "INPUT.MIN_SIZE_TRAIN", (64,)),
    )
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.save({"model": tiny.build(cfg).state_dict()}, tmp_path / "start.pth")
    command = [sys.executable, "-m", "tests.backends.detectron2.two_processes"]
    options = ["--config-file", str(tmp_path / "config.yaml")]
    # In the middle of twenty iterations, after which the processes agree.
    stopped = subprocess.run(
        [*command, told, "5", *options], capture_output=True, text=True, cwd=REPOSITORY, timeout=120
    )
    assert stopped.returncode == 143, stopped.stderr[-3000:]
    assert "Traceback" not in stopped.stderr
    checkpoints = {path.name for path in (tmp_path / "run").glob("*.pth")}
    if iterations == 8:
        assert checkpoints == {"model_final.pth"} and not (tmp_path / "run" / "inference").exists()
        return
    assert "stopped by SIGTERM after iteration 20: to continue, add --resume" in stopped.stderr
    assert checkpoints == {"model_0000020.pth"}
    resumed = subprocess.run(
        [*command, told, "-1", *options, "--resume", "DATASETS.TEST", "()"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=120,
    )
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert "Starting training from iteration 21" in (tmp_path / "run" / "log.txt").read_text()
    assert (tmp_path / "run" / "model_final.pth").exists()
