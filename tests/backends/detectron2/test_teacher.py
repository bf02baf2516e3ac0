"""Masks by a teacher: their own loss on this backend, and nothing of them where they are not used."""

import json

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import LazyConfig

from maskx_d2.backends.detectron2 import Trainer
from maskx_d2.backends.detectron2.checkpoint import ClassList, KnownClasses, classes_of_weights
from maskx_d2.backends.detectron2.data_loader import load_training_data
from maskx_d2.backends.detectron2.dataset_mapper import PartiallySupervisedMapper
from maskx_d2.backends.detectron2.datasets import register_datasets
from maskx_d2.backends.detectron2.evaluator import PartiallySupervisedEvaluator
from maskx_d2.backends.detectron2.lazy_config import partially_supervise
from maskx_d2.data.errors import InputError
from maskx_d2.runtime.configs import config_file

from . import tiny

HEAD = "MODEL.ROI_MASK_HEAD"
BOXES = [f"{HEAD}.BOX_SUPERVISION.PROJECTION", 0.3, f"{HEAD}.BOX_SUPERVISION.PAIRWISE", 0.3]
TEACHER = [f"{HEAD}.TEACHER.WEIGHT", 1.0]
BOTH = ["GeneralizedRCNN", "FrozenDetectorRCNN"]


def build(*overrides, meta_architecture="GeneralizedRCNN"):
    model = tiny.build(tiny.model_config(*overrides, meta_architecture=meta_architecture))
    model.load_state_dict(model.state_dict())  # a frozen detector wants its weights
    return model


def batch(scores=(0.0, 0.9, 0.0), value=None):
    """Two images; the second object of the first has a mask by a teacher, or a box only."""
    first, second = (
        tiny.instances([0, 3, 1], [True, False, True], value),
        tiny.instances([2], [False], value),
    )
    first.gt_teacher_score, second.gt_teacher_score = torch.tensor(scores), torch.zeros(1)
    return tiny.batch(first, second)


def gradients(model, losses):
    model.zero_grad(set_to_none=True)
    sum(losses.values()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("meta_architecture", BOTH)
def test_its_loss_stands_beside_the_others_which_stay_what_they_are(meta_architecture):
    kind = {"meta_architecture": meta_architecture}
    without = tiny.losses(build(*BOXES, **kind), batch())
    found = tiny.losses(build(*BOXES, *TEACHER, **kind), batch())
    assert set(found) == set(without) | {"loss_mask_teacher"}
    assert found["loss_mask_teacher"] > 0
    torch.testing.assert_close(found["loss_mask"], without["loss_mask"], rtol=1e-5, atol=0)
    # The object with a mask by a teacher is not supervised by its box any more.
    assert found["loss_mask_projection"] != without["loss_mask_projection"]


@pytest.mark.parametrize("meta_architecture", BOTH)
@pytest.mark.parametrize("boxes", [[], BOXES])
@pytest.mark.parametrize("options", [[], [*TEACHER, f"{HEAD}.TEACHER.MIN_SCORE", 0.95]])
def test_masks_that_are_not_used_change_nothing(meta_architecture, boxes, options):
    outcomes = []
    for value in (0, 1, None):
        model = build(*boxes, *options, meta_architecture=meta_architecture)
        losses = tiny.losses(model, batch(value=value))
        outcomes.append((losses, gradients(model, losses)))
    (losses, of_first), *others = outcomes
    assert losses.get("loss_mask_teacher", 0) == 0
    for other_losses, other_gradients in others:
        assert other_losses == losses
        assert all(torch.equal(other_gradients[name], g) for name, g in of_first.items())
    without = batch()
    for image in without:
        image["instances"].remove("gt_teacher_score")
    before = tiny.losses(build(*boxes, meta_architecture=meta_architecture), without)
    assert all(torch.equal(losses[name], value) for name, value in before.items())


def test_its_loss_is_the_score_times_that_of_true_masks_of_the_same_objects():
    ground_truth = [f"{HEAD}.TRAIN_ROIS", "ground_truth"]
    true = tiny.batch(tiny.instances([0, 3, 1], [False, True, False]), tiny.instances([2], [False]))
    expected = tiny.losses(build(*ground_truth), true)["loss_mask"]
    taught = batch()
    taught[0]["instances"].gt_has_mask[:] = False
    found = tiny.losses(build(*ground_truth, f"{HEAD}.TEACHER.WEIGHT", 2.0), taught)
    assert found["loss_mask"] == 0 and expected > 0
    torch.testing.assert_close(found["loss_mask_teacher"], 2.0 * 0.9 * expected)


def test_a_true_mask_is_never_that_of_a_teacher():
    """A score beside a true mask counts for nothing."""
    found = tiny.losses(build(*TEACHER), batch((1.0, 0.9, 1.0)))
    assert found == tiny.losses(build(*TEACHER), batch())


def test_a_batch_without_such_masks_gives_every_mask_parameter_a_gradient():
    model = build(*TEACHER)
    losses = tiny.losses(model, tiny.batch(tiny.instances([1], [False]), tiny.instances([])))
    assert losses["loss_mask_teacher"] == 0
    found = gradients(model, {"loss_mask_teacher": losses["loss_mask_teacher"]})
    expected = {name for name, _ in model.roi_heads.mask_head.named_parameters()}
    assert {name.removeprefix("roi_heads.mask_head.") for name in found} >= expected


@pytest.mark.parametrize(
    ("key", "value"), [("WEIGHT", -1.0), ("MIN_SCORE", 1.5), ("MIN_SCORE", -0.1), ("WEIGHT", float("nan"))]
)
def test_options_that_cannot_be_are_refused(key, value):
    with pytest.raises(InputError, match=rf"{HEAD}.TEACHER.{key} is .*, expected"):
        build(f"{HEAD}.TEACHER.{key}", value)


# ---- From an annotation file ----


@pytest.fixture
def taught(shapes_dataset, tmp_path):
    """The training images, with masks by a teacher of a score of 0.7 for every other object."""
    content = json.loads(shapes_dataset.all_masks_json.read_text())
    for annotation in content["annotations"][::2]:
        annotation |= {"segmentation_source": "teacher", "mask_score": 0.7}
    path = tmp_path / "taught.json"
    path.write_text(json.dumps(content))
    return path


def config(shapes_dataset, path, output, *overrides):
    cfg = tiny.data_config(shapes_dataset, output, "DATASETS.CLASSES_WITH_MASKS", "all", *overrides)
    cfg.defrost()
    entry = ["taught", str(path), str(shapes_dataset.train_images)]
    cfg.DATASETS.MASKX_REGISTER = [*cfg.DATASETS.MASKX_REGISTER, entry]
    cfg.DATASETS.TRAIN = ("taught",)
    register_datasets(cfg)
    return cfg


def test_an_annotation_file_says_which_masks_are_by_a_teacher(shapes_dataset, taught, tmp_path):
    content = json.loads(taught.read_text())
    cfg = config(shapes_dataset, taught, tmp_path, *TEACHER)
    dicts, _ = load_training_data(cfg)
    mapper = PartiallySupervisedMapper(cfg, is_train=True, augmentations=[])
    scores, has_mask = [], []
    for image in dicts:
        instances = mapper(image)["instances"]
        assert instances.gt_masks.nonempty().all()
        scores += instances.gt_teacher_score.tolist()
        has_mask += instances.gt_has_mask.tolist()
    count = sum("mask_score" in record for record in content["annotations"])
    assert has_mask.count(False) == count > 3
    assert all(
        score == pytest.approx(0.0 if is_true else 0.7)
        for score, is_true in zip(scores, has_mask, strict=True)
    )


def test_without_the_loss_they_are_boxes_only_and_the_log_says_so(shapes_dataset, taught, tmp_path, caplog):
    cfg = config(shapes_dataset, taught, tmp_path)
    dicts, _ = load_training_data(cfg)
    assert "masks by a teacher are not used, because MODEL.ROI_MASK_HEAD.TEACHER.WEIGHT is 0" in caplog.text
    for image in dicts[:4]:
        instances = PartiallySupervisedMapper(cfg, is_train=True, augmentations=[])(image)["instances"]
        assert not instances.has("gt_teacher_score")
        assert torch.equal(instances.gt_masks.nonempty(), instances.gt_has_mask)


def test_data_with_masks_by_a_teacher_alone_can_be_learned_from(shapes_dataset, taught, tmp_path):
    content = json.loads(taught.read_text())
    for annotation in content["annotations"]:
        annotation["segmentation_source"] = "teacher"
    taught.write_text(json.dumps(content))
    load_training_data(config(shapes_dataset, taught, tmp_path, *TEACHER))
    with pytest.raises(InputError, match=r"expected at least one to learn masks from"):
        load_training_data(config(shapes_dataset, taught, tmp_path))


def test_a_run_records_the_classes_that_a_teacher_trained(shapes_dataset, taught, tmp_path):
    content = json.loads(taught.read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    (category_id, *_) = sorted({a["category_id"] for a in content["annotations"]})
    for annotation in content["annotations"]:
        annotation.pop("segmentation_source", None)
        if annotation["category_id"] == category_id:
            annotation["segmentation_source"] = "teacher"
    taught.write_text(json.dumps(content))
    trainer = Trainer(config(shapes_dataset, taught, tmp_path, *TEACHER))
    classes = trainer.known_classes()
    assert [classes.names[i] for i in classes.by_teacher] == [names[category_id]]
    assert not set(classes.by_teacher) & set(classes.with_masks) and len(classes.with_masks) > 3
    trainer.checkpointer.save("model")
    assert classes_of_weights(str(tmp_path / "model.pth")) == classes
    assert KnownClasses.of_config(classes.written_into(trainer.cfg)) == classes


def test_a_checkpoint_of_0_3_0_has_no_classes_by_a_teacher(tmp_path):
    classes = {"names": ["cat", "dog"], "category_ids": [1, 2], "with_masks": [0]}
    torch.save({"model": {"a": torch.zeros(1)}, ClassList.KEY: classes}, tmp_path / "model.pth")
    assert classes_of_weights(str(tmp_path / "model.pth")).by_teacher == []


def test_a_lazy_config_takes_a_teacher():
    config = LazyConfig.load(str(config_file("lazy/maskx_R_50_FPN_1x.py")))
    assert "teacher" not in config.model.roi_heads.mask_head
    model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
    dataloader = model_zoo.get_config("common/data/coco.py").dataloader
    partially_supervise(model, dataloader, split="voc", teacher={"weight": 0.5})
    assert model.roi_heads.mask_head.teacher.weight == 0.5 and dataloader.train.mapper.with_teacher


def test_masks_by_a_teacher_are_no_truth_in_evaluation(shapes_dataset, taught, tmp_path):
    load_training_data(config(shapes_dataset, taught, tmp_path, *TEACHER))
    evaluator = PartiallySupervisedEvaluator("taught", classes_with_masks=[0], output_dir=str(tmp_path))
    truth = {a["id"]: a for a in evaluator._coco_api.dataset["annotations"]}
    for record in json.loads(taught.read_text())["annotations"]:
        assert bool(truth[record["id"]].get("segmentation")) == ("mask_score" not in record)
