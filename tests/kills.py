#!/usr/bin/env python3
"""
Kills short training runs (-9) at random moments and resumes them: each has to end with the weights of a
run that nobody disturbed. As a program ``python -m tests.kills --backend torchvision --kills 40``; the
suite does a few.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from maskx_d2.demo import shapes
from maskx_d2.demo.generated_dataset import GeneratedDataset

from .forked import Forked

STEPS = 12
PERIOD = 3  # steps between two checkpoints


def torchvision_run(dataset: GeneratedDataset) -> Callable[[Path], None]:
    """What trains in a folder, from its last checkpoint if there is one."""
    from maskx_d2.backends.torchvision.command_line import main

    from .backends.torchvision.test_training import command

    def train(folder: Path) -> None:
        words = command(dataset, folder, f"--checkpoint_period={PERIOD}", steps=STEPS)[4:]
        last = folder / "last.ckpt"
        main([*words, *(["--ckpt_path", str(last)] if last.exists() else [])])

    return train


def detectron2_run(dataset: GeneratedDataset) -> Callable[[Path], None]:
    from maskx_d2.backends.detectron2.command_line import main

    from .backends.detectron2 import tiny

    def train(folder: Path) -> None:
        tiny.forget("shapes_train", "shapes_test", "shapes_train_all_masks")
        overrides = ["SOLVER.MAX_ITER", STEPS, "SOLVER.CHECKPOINT_PERIOD", PERIOD, "DATASETS.TEST", ()]
        overrides += ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"]
        config = folder.with_suffix(".yaml")
        config.write_text(tiny.data_config(dataset, folder, *overrides).dump())
        main(["--config-file", str(config), "--resume"])

    return train


BACKENDS = {
    "torchvision": (torchvision_run, "model_final.ckpt"),
    "detectron2": (detectron2_run, "model_final.pth"),
}


def weights(path: Path) -> dict[str, torch.Tensor]:
    content = torch.load(path, weights_only=True)
    return content.get("state_dict", content.get("model"))


def forked(train: Callable[[Path], None], folder: Path, *, seconds: float | None = None) -> bool:
    """Train in another process. Killed after some seconds, or to the end; returns whether it got there."""
    process = Forked(lambda: train(folder))
    if seconds is not None:
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
    status = process.wait()
    if seconds is None and status != 0:
        raise AssertionError(process.stderr[-3000:])
    return status == 0


def kill_and_compare(backend: str, kills: int, work: Path, *, seed: int = 0) -> dict[str, int]:
    """
    Returns:
        How many kills there were, of them how many came after the run's end, and how many runs ended with
        the weights of the undisturbed one. A run gets up to three kills.

    Raises:
        AssertionError: weights differ, or a run cannot go on.
    """
    torch.set_num_threads(1)
    dataset = shapes.generate(work / "dataset", num_train=8, num_test=2, seed=0)
    make, final = BACKENDS[backend]
    train = make(dataset)
    started = time.monotonic()
    forked(train, work / "through")
    length = time.monotonic() - started
    expected = weights(work / "through" / final)
    rng = random.Random(seed)
    counts = {"kills": 0, "after the end": 0, "same weights": 0}
    while counts["kills"] < kills:
        folder = work / f"run_{counts['same weights']}"
        for _ in range(min(rng.randint(1, 3), kills - counts["kills"])):
            finished = forked(train, folder, seconds=rng.uniform(0, 1.1 * length))
            counts["kills"] += 1
            counts["after the end"] += finished
        if not (folder / final).exists():
            forked(train, folder)
        found = weights(folder / final)
        assert set(found) == set(expected), folder
        assert all(torch.equal(found[name], value) for name, value in expected.items()), folder
        counts["same weights"] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", choices=BACKENDS, required=True)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(args.backend, kill_and_compare(args.backend, args.kills, Path(folder), seed=args.seed))


if __name__ == "__main__":
    sys.exit(main())
