"""Mask heads on a frozen detector of Detectron2: what they see, and the models that they become."""

import json

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes
from PIL import Image

from maskx_d2.backends.detectron2.command_line import read_config
from maskx_d2.backends.detectron2.frozen_model import Detectron2FrozenDetector
from maskx_d2.backends.detectron2.predict import Detectron2Detector
from maskx_d2.backends.detectron2.recipe_config import recipe_config
from maskx_d2.backends.load import load_detector, load_frozen_detector
from maskx_d2.commands.main import main
from maskx_d2.inference.detector import KnownObjects
from maskx_d2.inference.mask_scores import ScoreCalibration
from maskx_d2.method import Recipe

from . import tiny

RECIPE = Recipe(
    "box-supervised",
    embedding_dropout=0.5,
    channels=8,
    train_rois="both",
    box_supervision={"projection": 0.3, "pairwise": 0.3},
)
CALIBRATION = ScoreCalibration([], [[0.0, 1.0]], [[0.2, 0.6]], 0.1)


@pytest.fixture(scope="module")
def model(shapes_dataset, tmp_path_factory):
    """Paths of the config and the weights of an untrained model of the demo's 32 classes."""
    return tiny.save_untrained(shapes_dataset, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def cfg(model):
    return read_config(str(model[0]), ["MODEL.WEIGHTS", str(model[1])])


@pytest.fixture(scope="module")
def detector(cfg):
    return Detectron2FrozenDetector(cfg)


@pytest.fixture
def image(shapes_dataset):
    return Image.open(min(shapes_dataset.test_images.iterdir())).crop((0, 0, 100, 120))


def test_its_detections_are_those_of_the_model(detector, cfg, image):
    found = detector.see(image).detections()
    (expected,) = Detectron2Detector.from_config(cfg).coco_results([image], [0])
    np.testing.assert_allclose(found.scores, [d["score"] for d in expected], atol=1e-5)
    boxes = np.array([d["bbox"] for d in expected])
    boxes[:, 2:] += boxes[:, :2]
    # Those of the model are clipped to the image once more.
    np.testing.assert_allclose(found.boxes.numpy().clip(0, [100, 120, 100, 120]), boxes, atol=1e-2)


def test_its_features_are_those_of_the_models_mask_pooler(detector, cfg, image):
    whole = tiny.build_model(recipe_config(cfg, RECIPE))
    whole.load_state_dict(detector.model.state_dict(), strict=False)
    seen = detector.see(image)
    boxes = torch.tensor([[5.0, 6.0, 70.0, 90.0], [10.0, 20.0, 40.0, 44.0]])
    pooled = seen.roi_features(boxes, 14)
    features = [seen._features[name] for name in cfg.MODEL.ROI_HEADS.IN_FEATURES]
    expected = whole.roi_heads.mask_pooler(features, [Boxes(boxes * seen._scale)])
    torch.testing.assert_close(pooled, expected)


def test_a_mask_head_is_new_and_the_detector_stays(detector, cfg):
    head = detector.mask_head(RECIPE).train()
    state = head.model.state_dict()
    for name, value in detector.model.state_dict().items():
        assert torch.equal(state[name], value)
    trained = [name for name, p in head.named_parameters() if p.requires_grad]
    assert trained and all(name.startswith("model.roi_heads.mask_head.") for name in trained)
    assert head.model.roi_heads.mask_head.training and not head.model.backbone.training
    weights = torch.load(cfg.MODEL.WEIGHTS)["model"]
    name = "roi_heads.mask_head.mask_fcn1.weight"
    assert not torch.equal(state[name], weights[name])


def test_a_saved_model_predicts_the_masks_of_its_head(detector, image, tmp_path):
    head = detector.mask_head(RECIPE).eval()
    boxes = [[5.0, 6.0, 70.0, 90.0], [10.0, 20.0, 40.0, 44.0]]
    classes = torch.tensor([3, 7])
    with torch.no_grad():
        logits = head(detector.see(image).roi_features(torch.tensor(boxes), 14), classes)
    expected = detector.masks_as_rle(logits.sigmoid(), torch.tensor(boxes), (image.height, image.width))
    options = head.save(tmp_path, with_masks=[0, 3], calibration=CALIBRATION).split()
    loaded = load_detector(options[3], options[1])
    ids = [detector.category_ids[c] for c in classes]
    (found,) = loaded.masks_in_boxes([image], [KnownObjects(boxes, ids)])
    import pycocotools.mask as mask_util

    for mask, other in zip(found, expected, strict=True):
        assert (mask_util.decode(mask.rle) != mask_util.decode(other)).mean() < 0.002
    assert loaded.style.with_masks == {detector.category_ids[0], detector.category_ids[3]}
    assert loaded.calibration.as_dict() == CALIBRATION.as_dict()


def test_c4_heads_are_refused(cfg):
    c4 = cfg.clone()
    c4.defrost()
    c4.MODEL.ROI_HEADS.NAME = "Res5ROIHeads"
    c4.MODEL.ROI_HEADS.IN_FEATURES = ["res4"]
    with pytest.raises(ValueError, match=r"expected a GeneralizedRCNN with StandardROIHeads or Cascade"):
        Detectron2FrozenDetector(_c4(c4))


def _c4(cfg):
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4"]
    cfg.MODEL.RPN.IN_FEATURES = ["res4"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32, 64]]
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 50, 256
    return cfg


def test_a_lazy_config_is_refused(model):
    with pytest.raises(ValueError, match=r"x.py is a LazyConfig, expected a YAML config"):
        load_frozen_detector(model[1], "x.py")


def test_the_command_leaves_a_report_a_config_that_trains_and_a_model(model, shapes_dataset, tmp_path):
    output = tmp_path / "cv"
    main(
        [
            *("cross-validate", str(shapes_dataset.train_json), str(shapes_dataset.train_images)),
            *("--config-file", str(model[0]), "--weights", str(model[1]), "--output", str(output)),
            *("--folds", "2", "--steps", "10", "--channels", "8", "--train"),
            *("--recipes", "class_agnostic", "maskx_box_supervised"),
        ]
    )
    assert "<svg" in (output / "report.html").read_text()
    assert json.loads((output / "results.json").read_text())["best"]
    load_detector(output / "model_final.pth", output / "config.yaml")
    main(
        [
            *("detectron2", "--config-file", str(output / "recipe.yaml")),
            *("SOLVER.MAX_ITER", "1", "DATALOADER.NUM_WORKERS", "0", "TEST.EVAL_PERIOD", "0"),
            *("OUTPUT_DIR", str(tmp_path / "run"), "MODEL.DEVICE", "cpu"),
        ]
    )
    assert (tmp_path / "run" / "model_final.pth").is_file()
