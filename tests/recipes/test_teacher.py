"""Masks by a teacher in cross-validation: measured as they are, and learned from."""

import io
import json
from contextlib import redirect_stdout
from dataclasses import replace

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
import yaml

from maskx_d2.commands.main import main
from maskx_d2.data.errors import InputError
from maskx_d2.method import TeacherSupervision, mask_loss
from maskx_d2.recipes import training
from maskx_d2.recipes.annotated_images import read_annotated_images
from maskx_d2.recipes.measurement import masks_of_teacher, see_measured
from maskx_d2.recipes.roi_cache import Rois, fill_cache
from tests.recipes.tiny import AGNOSTIC, SUPERVISED


def eroded(annotation, size):
    """The true mask without its first rows: a quarter of the box."""
    _, y, _, height = annotation["bbox"]
    mask = mask_util.decode(annotation["segmentation"])
    mask[: int(y + height / 4)] = 0
    rle = mask_util.encode(np.asfortranarray(mask))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


@pytest.fixture(scope="module")
def teacher_file(dataset, tmp_path_factory):
    """All objects of the training images with masks by a teacher, which misses a part of each."""
    content = json.loads(dataset.all_masks_json.read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for annotation in content["annotations"]:
        annotation["segmentation"] = eroded(annotation, sizes[annotation["image_id"]])
        annotation |= {"segmentation_source": "teacher", "mask_score": 0.75}
    path = tmp_path_factory.mktemp("teacher") / "teacher.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def images(dataset, detector, teacher_file):
    return read_annotated_images(
        dataset.train_json, dataset.train_images, detector.class_names, teacher=teacher_file
    )


def test_masks_by_a_teacher_are_matched_to_their_objects(images, teacher_file):
    records = json.loads(teacher_file.read_text())["annotations"]
    by_box = {(a["image_id"], *a["bbox"]): a["segmentation"] for a in records}
    count = 0
    for image in images.images:
        for box, mask, score in zip(image.boxes, image.teacher_masks, image.teacher_scores, strict=True):
            x0, y0, x1, y1 = box.tolist()
            expected = by_box[(image.id, x0, y0, x1 - x0, y1 - y0)]
            assert mask_util.iou([mask], [expected], [0]).item() == 1
            assert score == pytest.approx(0.75)
            count += 1
    assert count == len(records)


def test_the_losses_are_those_of_the_method(detector, images, tmp_path):
    cache = fill_cache(tmp_path / "cache", detector, images.images[:4], sides=[14])
    rois = Rois.cat([cache.rois(i, mirrored=bool(i % 2)) for i in range(4)])
    head = detector.mask_head(SUPERVISED).eval()
    hidden = rois.classes[rois.has_mask].unique()[:1]
    teacher = TeacherSupervision(weight=0.5, min_score=0.7)
    losses = training._losses(head, rois, None, teacher, hidden, "cpu")
    logits = head(rois.features[14].float(), rois.classes)
    is_true = rois.has_mask & (rois.classes != hidden)
    of_masks = mask_loss(logits[is_true], rois.masks[28][is_true] / 255)
    torch.testing.assert_close(losses["mask"], of_masks)
    of_teacher = 0.5 * 0.75 * mask_loss(logits[~is_true], rois.teacher_masks[28][~is_true] / 255)
    torch.testing.assert_close(losses["teacher"], of_teacher)
    # True masks where there are some: those of the teacher are smaller.
    taught, true = rois.teacher_masks[28][rois.has_mask], rois.masks[28][rois.has_mask]
    assert taught.float().mean() < 0.95 * true.float().mean()


def test_masks_below_the_least_score_are_learned_by_their_boxes(detector, images, tmp_path):
    cache = fill_cache(tmp_path / "cache", detector, images.images[:4], sides=[14])
    rois = Rois.cat([cache.rois(i, mirrored=False) for i in range(4)])
    head, none = detector.mask_head(SUPERVISED).eval(), torch.zeros(0, dtype=torch.int64)
    supervision = training._box_supervision(replace(SUPERVISED), 10)
    supervision.start = supervision.warmup = 0
    expected = training._losses(head, rois, supervision, None, none, "cpu")
    supervision.steps.zero_()
    teacher = TeacherSupervision(min_score=0.8)
    found = training._losses(head, rois, supervision, teacher, none, "cpu")
    assert found.pop("teacher") == 0
    assert found == expected


@pytest.mark.parametrize("recipe", [AGNOSTIC, SUPERVISED])
def test_a_recipe_with_a_teacher_learns_from_objects_without_a_mask(recipe, images):
    rois = None
    teacher = TeacherSupervision()
    hidden = torch.zeros(0, dtype=torch.int64)
    for image in images.images:
        if len(image.with_mask) < len(image.boxes):
            break
    assert image.teacher_scores.all()
    number = len(image.boxes)
    rois = Rois(
        features={14: torch.zeros(number, 1, 14, 14)},
        boxes=torch.from_numpy(image.boxes),
        true_boxes=torch.from_numpy(image.boxes),
        classes=torch.from_numpy(image.classes),
        has_mask=torch.tensor([mask is not None for mask in image.masks]),
        is_ground_truth=torch.ones(number, dtype=torch.bool),
        masks={},
        teacher_scores=torch.from_numpy(image.teacher_scores),
        teacher_masks={},
        others={},
        colours={},
    )
    given = (
        replace(recipe, train_rois="ground_truth", box_supervision={}),
        training.Schedule(rois=100),
        hidden,
    )
    generator = torch.Generator().manual_seed(0)
    assert len(training._choose(rois, *given, teacher, generator)) == number
    assert len(training._choose(rois, *given, None, generator)) == len(image.with_mask) < number


def test_the_iou_of_a_teacher_is_that_of_its_masks_with_the_true_ones(detector, images):
    measured = see_measured(detector, images.images[:6], sides=[14])
    quality = masks_of_teacher(measured)
    expected = [
        np.array(mask_util.iou([image.teacher_masks[i]], [image.masks[i]], [0])).item()
        for image in images.images[:6]
        for i in range(len(image.boxes))
        if image.masks[i] is not None
    ]
    assert quality.ious.tolist() == expected and len(expected) > 3
    assert set(quality.scores.tolist()) == {0.75}
    for index in set(quality.classes.tolist()):
        of_class = [iou for iou, c in zip(expected, quality.classes, strict=True) if c == index]
        assert quality.mean_iou([index]) == pytest.approx(np.mean(of_class))


def arguments(dataset, weights, output, *more):
    return [
        *("cross-validate", str(dataset.train_json), str(dataset.train_images)),
        *("--weights", str(weights), "--output", str(output)),
        *("--folds", "2", "--steps", "10", "--channels", "8", *map(str, more)),
    ]


def test_the_command_measures_a_teacher_and_recipes_with_it(dataset, checkpoint, teacher_file, tmp_path):
    words = [
        "--teacher-masks",
        teacher_file,
        "--recipes",
        "class_agnostic",
        "maskx_box_supervised_with_teacher",
    ]
    with redirect_stdout(io.StringIO()) as printed:
        main(arguments(dataset, checkpoint, tmp_path / "cv", *words))
    results = json.loads((tmp_path / "cv" / "results.json").read_text())
    assert set(results["recipes"]) == {"class_agnostic", "maskx_box_supervised_with_teacher"}
    assert all(0.6 < iou < 0.95 for iou in results["teacher"]["mask_iou"])
    out = printed.getvalue()
    (row,) = [line for line in out.splitlines() if line.startswith("| masks of the teacher, as they are")]
    assert f"{100 * np.mean(results['teacher']['mask_iou']):.1f}" in row
    assert "the teacher's own masks are better than those of this recipe" in out
    assert "the teacher" in (tmp_path / "cv" / "report.html").read_text()
    if results["best"].endswith("with_teacher"):
        recipe = yaml.safe_load((tmp_path / "cv" / "recipe.yaml").read_text())
        assert recipe["model"]["teacher"] == {"weight": 1.0}


def test_what_the_command_cannot_use_is_named(dataset, checkpoint, tmp_path, capsys):
    def error(*more):
        with pytest.raises(SystemExit) as stopped:
            main(arguments(dataset, checkpoint, tmp_path / "cv", *more))
        assert stopped.value.code == 2
        return capsys.readouterr().err

    assert "has no mask by a teacher, expected a file that maskx fill-masks --teacher MODEL" in error(
        "--teacher-masks", dataset.train_json
    )
    assert "maskx_box_supervised_with_teacher', which needs --teacher-masks" in error(
        "--recipes", "maskx_box_supervised_with_teacher"
    )


def test_a_cache_of_other_masks_by_a_teacher_is_refused(detector, images, dataset, tmp_path):
    fill_cache(tmp_path / "cache", detector, images.images[:2], sides=[14])
    without = read_annotated_images(dataset.train_json, dataset.train_images, detector.class_names)
    with pytest.raises(InputError, match=r"is a cache of other annotations"):
        fill_cache(tmp_path / "cache", detector, without.images[:2], sides=[14])
