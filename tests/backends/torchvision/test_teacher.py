"""Masks by a teacher: their own loss on this backend, and nothing of them where they are not used."""

import json

import pytest
import torch
from lightning.pytorch import Trainer
from torchvision.models.detection.roi_heads import project_masks_on_boxes

from maskx_d2.backends.torchvision.data_module import CocoDataModule
from maskx_d2.backends.torchvision.dataset import PartiallySupervisedCoco, read_records
from maskx_d2.backends.torchvision.predict import TorchvisionDetector
from maskx_d2.backends.torchvision.training import TrainingModule
from maskx_d2.data.coco_file import read_coco_file
from maskx_d2.data.errors import InputError
from maskx_d2.demo import shapes
from maskx_d2.method import mask_loss

from . import tiny

BOXES = {"projection": 0.3, "pairwise": 0.3}


def build(frozen=False, **options):
    model = tiny.build(**options)
    if frozen:
        model.freeze_detector()
    return model


def targets(scores=(0.0, 0.9, 0.0), value=None):
    """Two images; the second object of the first has a mask by a teacher, or a box only."""
    first = tiny.target([1, 4, 2], [True, False, True], value)
    first["teacher_score"] = torch.tensor(scores)
    return [first, tiny.target([3], [False], value)]


@pytest.mark.parametrize("frozen", [False, True])
def test_its_loss_stands_beside_the_others_which_stay_what_they_are(frozen):
    without = tiny.losses(build(frozen, box_supervision=BOXES), targets())
    found = tiny.losses(build(frozen, box_supervision=BOXES, teacher={"weight": 1.0}), targets())
    assert set(found) == set(without) | {"loss_mask_teacher"}
    assert found["loss_mask_teacher"] > 0
    torch.testing.assert_close(found["loss_mask"], without["loss_mask"], rtol=1e-5, atol=0)
    # The object with a mask by a teacher is not supervised by its box any more.
    assert found["loss_mask_projection"] != without["loss_mask_projection"]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("box_supervision", [None, BOXES])
@pytest.mark.parametrize("options", [{}, {"teacher": {"weight": 1.0, "min_score": 0.95}}])
def test_masks_that_are_not_used_change_nothing(frozen, box_supervision, options):
    outcomes = []
    for value in (0, 1, None):
        model = build(frozen, box_supervision=box_supervision, **options)
        found = tiny.losses(model, targets(value=value))
        outcomes.append((found, tiny.gradients(model, sum(found.values()))))
    (losses, gradients), *others = outcomes
    assert losses.get("loss_mask_teacher", 0) == 0
    for other_losses, other_gradients in others:
        assert other_losses == losses
        assert all(torch.equal(other_gradients[name], g) for name, g in gradients.items())
    before = tiny.losses(
        build(frozen, box_supervision=box_supervision),
        [{k: v for k, v in target.items() if k != "teacher_score"} for target in targets()],
    )
    assert all(torch.equal(losses[name], value) for name, value in before.items())


def test_its_loss_is_the_score_times_the_cross_entropy_of_the_rois_of_its_objects():
    of_score = {
        score: tiny.losses(build(teacher={"weight": 2.0}), targets((0.0, score, 0.0)))
        for score in (0.9, 0.3)
    }
    ratio = of_score[0.9]["loss_mask_teacher"] / of_score[0.3]["loss_mask_teacher"]
    assert ratio.item() == pytest.approx(3, rel=1e-4)
    # As true masks of the same objects, with the same RoIs and no other masks.
    true = [tiny.target([1, 4, 2], [False, True, False]), tiny.target([3], [False])]
    taught = targets()
    taught[0]["has_mask"][:] = False
    options = {"train_rois": "ground_truth"}
    expected = tiny.losses(build(**options), true)["loss_mask"]
    found = tiny.losses(build(teacher={"weight": 2.0}, **options), taught)
    assert found["loss_mask"] == 0
    torch.testing.assert_close(found["loss_mask_teacher"], 2.0 * 0.9 * expected)


def test_a_true_mask_is_never_that_of_a_teacher():
    """A score beside a true mask counts for nothing."""
    found = tiny.losses(build(teacher={"weight": 1.0}), targets((1.0, 0.9, 1.0)))
    expected = tiny.losses(build(teacher={"weight": 1.0}), targets())
    assert found == expected


@pytest.mark.parametrize("teacher", [{"weight": 0}, {"weight": 1, "wrong": 2}, {"min_score": -1}])
def test_options_that_cannot_be_are_refused(teacher):
    with pytest.raises(InputError, match=r"teacher is \{.*: "):
        build(teacher=teacher)


# ---- From an annotation file ----


@pytest.fixture
def files(tmp_path):
    """A generated dataset, half of whose masks are by a teacher with a score of 0.7."""
    dataset = shapes.generate(tmp_path / "shapes", num_train=6, num_test=2, seed=0)
    content = json.loads(dataset.all_masks_json.read_text())
    for annotation in content["annotations"][::2]:
        annotation |= {"segmentation_source": "teacher", "mask_score": 0.7}
    path = tmp_path / "taught.json"
    path.write_text(json.dumps(content))
    return dataset, path


def test_an_annotation_file_says_which_masks_are_by_a_teacher(files):
    dataset, path = files
    records = {a["id"]: a for a in json.loads(path.read_text())["annotations"]}
    true = read_records(read_coco_file(dataset.all_masks_json))
    plain = PartiallySupervisedCoco(true, dataset.train_images)
    taught = PartiallySupervisedCoco(read_records(read_coco_file(path)), dataset.train_images)
    count = 0
    for (_, expected), (_, found) in zip(plain, taught, strict=True):
        assert torch.equal(found["masks"], expected["masks"])
        assert torch.equal(found["teacher_score"] == 0, found["has_mask"])
        assert torch.equal(found["teacher_score"], (~found["has_mask"]).float() * 0.7)
        count += int((~found["has_mask"]).sum())
    assert count == sum("mask_score" in record for record in records.values()) > 3


def test_such_masks_are_counted_apart_and_their_classes_are_not_trained_with_masks(files):
    dataset, path = files
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["segmentation_source"] = "teacher"
    path.write_text(json.dumps(content))
    data = CocoDataModule(path, dataset.train_images, dataset.test_json, dataset.test_images)
    assert data.num_teacher == len(content["annotations"])
    assert data.trained_with_masks == [] and not data.has_masks
    assert f"masks by a teacher: {data.num_teacher}" in str(data._training[1])


def test_a_checkpoint_says_which_classes_a_teacher_trained(files, tmp_path):
    dataset, path = files
    content = json.loads(path.read_text())
    (taught, *_) = sorted({a["category_id"] for a in content["annotations"]})
    for annotation in content["annotations"]:
        if annotation["category_id"] == taught:
            annotation["segmentation_source"] = "teacher"
        else:
            annotation.pop("segmentation_source", None)
    path.write_text(json.dumps(content))
    data = CocoDataModule(path, dataset.train_images, dataset.test_json, dataset.test_images, batch_size=2)
    for teacher in ({"weight": 1.0}, None):
        module = TrainingModule(
            class_names=data.class_names,
            category_ids=data.category_ids,
            classes_with_masks=[],
            teacher=teacher,
            **{**tiny.MODEL, "min_size": 64, "max_size": 64},
        )
        folder = tmp_path / str(teacher is None)
        trainer = Trainer(
            default_root_dir=folder,
            max_steps=1,
            accelerator="cpu",
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, datamodule=data)
        style = TorchvisionDetector(folder / "model_final.ckpt").style
        assert style.by_teacher == ({taught} if teacher else frozenset())
        assert taught not in style.with_masks and len(style.with_masks) > 3


def test_masks_by_a_teacher_are_no_truth_in_evaluation(files):
    dataset, path = files
    data = CocoDataModule(path, dataset.train_images, path, dataset.train_images)
    truth = {a["id"]: a for a in data.val_coco.dataset["annotations"]}
    for record in json.loads(path.read_text())["annotations"]:
        is_true = "mask_score" not in record
        assert bool(truth[record["id"]].get("segmentation")) == is_true


def test_the_loss_of_a_mask_is_that_of_the_method(files):
    """One RoI, the box of an object, cell by cell."""
    model = build(teacher={"weight": 1.0}, train_rois="ground_truth")
    heads = model.roi_heads
    seen = {}
    original = heads._mask_logits
    heads._mask_logits = lambda *given: seen.setdefault("logits", original(*given))
    target = tiny.target([2], [False])
    target["teacher_score"] = torch.tensor([0.5])
    found = tiny.losses(model, [target])
    side = seen["logits"].shape[-1]
    expected = project_masks_on_boxes(target["masks"], target["boxes"], torch.tensor([0]), side)
    torch.testing.assert_close(found["loss_mask_teacher"], 0.5 * mask_loss(seen["logits"], expected))
