"""A detector with and without Ray."""

import contextlib
import os
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import ray
import torch
from PIL import Image

from maskx_d2.inference.detector import Detector
from maskx_d2.inference.ray_data import predict_on_ray

from ..hidden import detectron2_hidden_in_processes

NUM_IMAGES = 16


@contextlib.contextmanager
def two_cpus(folder: Path):
    """
    Ray on this machine, as if Detectron2 were not installed, which each process takes seconds to import.

    Args:
        folder: for a file that its processes start with.
    """
    with detectron2_hidden_in_processes(folder):
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            yield
        finally:
            ray.shutdown()


def killed_once(detector: Detector, marker: Path) -> Detector:
    """The same, but that a process is killed in the middle of its work, unless the marker is there."""

    # Here, so that other processes get the code with the detector.
    class KilledOnce:
        style, calibration, source = detector.style, detector.calibration, detector.source

        def __init__(self):
            self.num_seen = 0

        def to(self, device):
            detector.to(device)
            return self

        def see(self, images):
            self.num_seen += len(images)
            if self.num_seen > 10 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        def coco_results(self, images, image_ids):
            self.see(images)
            return detector.coco_results(images, image_ids)

        def masks_in_boxes(self, images, objects):
            self.see(images)
            return detector.masks_in_boxes(images, objects)

    return KilledOnce()


def check_detector(detector: Detector, folder: Path) -> None:
    """
    Args:
        detector: one that finds something everywhere.
        folder: to work in.
    """
    rng = np.random.default_rng(0)
    paths = [str(folder / f"{i}.png") for i in range(1, NUM_IMAGES + 1)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(path)
    threads = torch.get_num_threads()
    # As many as Ray gives its workers: sums depend on how they are split.
    torch.set_num_threads(1)
    with two_cpus(folder):
        expected = {}
        scores = sorted(d["score"] for d in detector.coco_results([Image.open(paths[0])], [1])[0])
        min_score = scores[-3]
        for i, path in enumerate(paths, start=1):
            (found,) = detector.coco_results([Image.open(path)], [i])
            expected[path] = [d for d in found if d["score"] >= min_score]
        assert sum(map(len, expected.values())) > NUM_IMAGES
        output = folder / "out"
        assert predict_on_ray(detector, paths, str(output), min_score=min_score) == []
        rows = [row for path in output.rglob("*.parquet") for row in parquet.read_table(path).to_pylist()]
        assert len(rows) == NUM_IMAGES
        for row in rows:
            for detection in row["detections"]:
                detection["image_id"] = row["image_id"]
                assert detection.pop("category_name") == detector.style.names[detection["category_id"]]
        assert {row["path"]: row["detections"] for row in rows} == expected
    torch.set_num_threads(threads)
