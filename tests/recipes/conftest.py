"""A generated dataset, and a detector of its classes with random weights."""

import json

import pytest

from maskx_d2.backends.torchvision.frozen_detector import TorchvisionFrozenDetector
from maskx_d2.demo import shapes
from maskx_d2.recipes.annotated_images import read_annotated_images
from tests.recipes.tiny import write_detector


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    return shapes.generate(tmp_path_factory.mktemp("shapes") / "data", num_train=60, num_test=20, seed=0)


@pytest.fixture(scope="session")
def checkpoint(dataset, tmp_path_factory):
    categories = json.loads(dataset.train_json.read_text())["categories"]
    return write_detector(tmp_path_factory.mktemp("detector") / "detector.ckpt", categories)


@pytest.fixture(scope="session")
def detector(checkpoint):
    return TorchvisionFrozenDetector(checkpoint)


@pytest.fixture(scope="session")
def annotated(dataset, detector):
    return read_annotated_images(dataset.train_json, dataset.train_images, detector.class_names)
