"""What a frozen detector sees, against the model itself, and the models that mask heads become."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
import torchvision
from PIL import Image

from maskx_d2.backends.torchvision.frozen_detector import TorchvisionFrozenDetector
from maskx_d2.backends.torchvision.predict import TorchvisionDetector
from maskx_d2.backends.torchvision.training import TrainingModule
from maskx_d2.data.class_names import coco_class_names
from maskx_d2.inference.detector import KnownObjects
from maskx_d2.inference.mask_scores import ScoreCalibration
from maskx_d2.method import Recipe
from maskx_d2.runtime.checkpoints import write_checkpoint
from tests.backends.torchvision.tiny import MODEL

RECIPE = Recipe("box-supervised", embedding_dropout=0.5, channels=8, box_supervision={"projection": 0.3})
CALIBRATION = ScoreCalibration([500.0], [[0.0, 1.0], [0.5]], [[0.2, 0.6], [0.7]], 0.1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A whole model, with a mask head of its own."""
    torch.manual_seed(0)
    module = TrainingModule(
        class_names=["a", "b", "c"],
        category_ids=[3, 5, 9],
        classes_with_masks=[0],
        **{**MODEL, "box_score_thresh": 0.0},
    )
    path = tmp_path_factory.mktemp("model") / "model.ckpt"
    content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    write_checkpoint(path, content)
    return path


@pytest.fixture(scope="module")
def detector(checkpoint):
    return TorchvisionFrozenDetector(checkpoint)


@pytest.fixture
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((140, 180))


def test_its_detections_are_those_of_the_model(detector, checkpoint, image):
    found = detector.see(image).detections()
    (expected,) = TorchvisionDetector(checkpoint).to("cpu").coco_results([image], [0])
    boxes = np.array([d["bbox"] for d in expected])
    boxes[:, 2:] += boxes[:, :2]
    assert len(boxes) > 5
    np.testing.assert_allclose(found.boxes, boxes, atol=1e-3)
    np.testing.assert_allclose(found.scores, [d["score"] for d in expected], atol=1e-5)
    assert [detector.category_ids[c] for c in found.classes] == [d["category_id"] for d in expected]


def test_features_of_boxes_are_those_of_the_models_mask_branch(detector, checkpoint, image):
    boxes = torch.tensor([[5.0, 6.0, 90.0, 120.0], [10.0, 20.0, 40.0, 44.0]])
    model = TrainingModule.from_checkpoint(checkpoint).model.eval()
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255
    with torch.no_grad():
        images, targets = model.transform([pixels], [{"boxes": boxes, "labels": torch.ones(2).long()}])
        features = model.backbone(images.tensors)
        expected = model.roi_heads.mask_roi_pool(features, [targets[0]["boxes"]], images.image_sizes)
    torch.testing.assert_close(detector.see(image).roi_features(boxes, 14), expected)


def test_a_mask_head_is_new_and_the_detector_is_frozen(detector, checkpoint):
    torch.manual_seed(1)
    head = detector.mask_head(RECIPE)
    state, weights = head.model.state_dict(), torch.load(checkpoint)["state_dict"]
    for name, value in detector.model.state_dict().items():
        assert torch.equal(state[name], value)
    trained = [name for name, p in head.named_parameters() if p.requires_grad]
    assert trained and all(name.startswith("model.roi_heads.mask_") for name in trained)
    name = next(name for name in state if name.startswith("roi_heads.mask_head.") and "weight" in name)
    assert not torch.equal(state[name], weights[f"model.{name}"])


def test_a_saved_model_predicts_the_masks_of_its_head(detector, image, tmp_path):
    head = detector.mask_head(RECIPE).eval()
    boxes, classes = [[5.0, 6.0, 90.0, 120.0], [10.0, 20.0, 40.0, 44.0]], torch.tensor([2, 0])
    with torch.no_grad():
        logits = head(detector.see(image).roi_features(torch.tensor(boxes), 14), classes)
    expected = detector.masks_as_rle(logits.sigmoid(), torch.tensor(boxes), (image.height, image.width))
    _, path = head.save(tmp_path, with_masks=[1], calibration=CALIBRATION).split()
    loaded = TorchvisionDetector(path).to("cpu")
    (found,) = loaded.masks_in_boxes([image], [KnownObjects(boxes, [9, 3])])
    for mask, other in zip(found, expected, strict=True):
        assert (mask_util.decode(mask.rle) != mask_util.decode(other)).mean() < 0.002
    assert loaded.style.with_masks == {5}
    assert loaded.calibration.as_dict() == CALIBRATION.as_dict()


def test_torchvisions_own_coco_weights_are_a_detector(tmp_path):
    torch.manual_seed(2)
    own = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()
    path = tmp_path / "fasterrcnn_resnet50_fpn_coco.pth"
    torch.save(own.state_dict(), path)
    detector = TorchvisionFrozenDetector(path)
    assert detector.class_names == coco_class_names()
    assert (detector.category_ids[0], detector.category_ids[-1], len(detector.category_ids)) == (1, 90, 80)
    classifier = detector.model.roi_heads.box_predictor.cls_score.weight
    regressor = detector.model.roi_heads.box_predictor.bbox_pred.weight
    for index, category_id in ((0, 1), (11, 13), (79, 90)):
        assert torch.equal(classifier[1 + index], own.roi_heads.box_predictor.cls_score.weight[category_id])
        rows = own.roi_heads.box_predictor.bbox_pred.weight[4 * category_id : 4 * category_id + 4]
        assert torch.equal(regressor[4 + 4 * index : 8 + 4 * index], rows)


def test_other_files_are_refused(tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"detector .*other.pth"):
        TorchvisionFrozenDetector(tmp_path / "other.pth")
