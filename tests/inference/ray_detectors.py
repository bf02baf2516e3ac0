"""A detector with and without Ray."""

import contextlib
import os
import signal
from pathlib import Path

import ray

from maskx_d2.inference.detector import Detector

from ..hidden import detectron2_hidden_in_processes


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
