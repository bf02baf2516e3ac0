import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from maskx_d2.backends.torchvision.data_module import CocoDataModule
from maskx_d2.backends.torchvision.dataset import (
    PartiallySupervisedCoco,
    read_records,
    training_transforms,
)
from maskx_d2.data.coco_file import read_coco_file

from ...data import awkward
from .tiny import masks_of_boxes

RLE = mask_util.encode(np.asfortranarray(np.pad(np.ones((10, 20), np.uint8), ((30, 10), (40, 20)))))
ANNOTATIONS = [
    {"category_id": 7, "bbox": [10, 5, 20, 10], "segmentation": [[10, 5, 30, 5, 30, 15, 10, 15]]},
    {"category_id": 2, "bbox": [1, 2, 3, 4]},
    {"category_id": 7, "bbox": [40, 30, 20, 10], "segmentation": {**RLE, "counts": RLE["counts"].decode()}},
    {"category_id": 4, "bbox": [0, 0, 9, 9], "segmentation": []},
    {"category_id": 4, "bbox": [0, 0, 80, 50], "segmentation": {"size": [50, 80], "counts": [0, 4000]}},
    {
        "category_id": 2,
        "bbox": [0, 0, 80, 50],
        "segmentation": {"size": [50, 80], "counts": [0, 4000]},
        "iscrowd": 1,
    },
]


@pytest.fixture
def folder(tmp_path):
    """A JSON with gaps in its ids, masks of every kind, and an image without annotations."""
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 256, (50, 80, 3), dtype=np.uint8)).save(tmp_path / name)
    content = {
        "images": [
            {"id": 30, "file_name": "a.png", "width": 80, "height": 50},
            {"id": 12, "file_name": "b.png", "width": 80, "height": 50},
        ],
        "annotations": [
            {"id": i + 1, "image_id": 30, "iscrowd": 0, "area": 1, **a} for i, a in enumerate(ANNOTATIONS)
        ],
        "categories": [{"id": i, "name": f"class {i}"} for i in (7, 2, 4)],
    }
    (tmp_path / "truth.json").write_text(json.dumps(content))
    return tmp_path


def dataset(folder, **options):
    return of_file(folder / "truth.json", folder, **options)


def of_file(path, images, *, transforms=None, **options):
    return PartiallySupervisedCoco(
        read_records(read_coco_file(path), **options), images, transforms=transforms
    )


def test_targets_have_every_instance_and_say_which_has_a_mask(folder):
    image, target = dataset(folder)[1]
    assert image.shape == (3, 50, 80) and target["image_id"] == 30
    # Labels count the categories by id from 1 on; the crowd region is left out.
    assert target["labels"].tolist() == [3, 1, 3, 2, 2]
    assert target["has_mask"].tolist() == [True, False, True, False, True]
    assert target["boxes"].tolist() == [
        [10, 5, 30, 15],
        [1, 2, 4, 6],
        [40, 30, 60, 40],
        [0, 0, 9, 9],
        [0, 0, 80, 50],
    ]
    assert target["mask_index"].tolist() == [0, -1, 1, -1, 2]
    assert target["masks"].sum((1, 2)).tolist() == [200, 200, 4000]
    assert target["masks"][1, 30:40, 40:60].all() and target["masks"][0, 5:15, 10:30].all()


def test_a_split_takes_masks_away_and_adds_none(folder):
    for with_masks, expected in (
        ([2], [True, False, True, False, False]),
        ([0, 1], [False, False, False, False, True]),
        ([], [False] * 5),
    ):
        _, target = dataset(folder, with_masks=with_masks)[1]
        assert target["has_mask"].tolist() == expected
        assert masks_of_boxes(target).flatten(1).any(1).tolist() == expected
        assert len(target["masks"]) == sum(expected)
        assert len(target["boxes"]) == 5


def test_images_without_an_object_are_left_out_of_training_alone(folder):
    assert [int(target["image_id"]) for _, target in dataset(folder)] == [12, 30]
    (only,) = dataset(folder, annotated_only=True)
    assert only[1]["image_id"] == 30
    _, target = dataset(folder)[0]
    assert target["boxes"].shape == (0, 4) and target["masks"].shape == (0, 50, 80)


def test_training_transforms_flip_image_boxes_and_masks_together(folder):
    image, target = dataset(folder)[1]
    data, seen = dataset(folder, transforms=training_transforms()), set()
    for seed in range(8):
        torch.manual_seed(seed)
        pixels, found = data[1]
        flipped = not torch.equal(pixels, image)
        seen.add(flipped)
        assert torch.equal(pixels, image.flip(2) if flipped else image)
        assert torch.equal(found["masks"], target["masks"].flip(2) if flipped else target["masks"])
        boxes = target["boxes"].clone()
        if flipped:
            boxes[:, [0, 2]] = 80 - boxes[:, [2, 0]]
        assert torch.equal(found["boxes"], boxes)
        assert type(found["boxes"]) is torch.Tensor
    assert seen == {True, False}


def test_boxes_are_clamped_to_the_image_and_those_outside_go_with_all_that_is_theirs(folder):
    content = json.loads((folder / "truth.json").read_text())
    boxes = [70, 40, 30, 30], [90, 5, 10, 10], [10, 10, 0, 5]
    for annotation, box in zip(content["annotations"][:3], boxes, strict=True):
        annotation["bbox"] = box
        if annotation.get("segmentation"):
            x, y, w, h = box
            annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    (folder / "truth.json").write_text(json.dumps(content))
    torch.manual_seed(2)
    _, target = dataset(folder, transforms=training_transforms())[1]
    assert target["labels"].tolist() == [3, 2, 2]
    assert len(target["boxes"]) == len(target["mask_index"]) == len(target["has_mask"]) == 3
    assert target["mask_index"].tolist() == [0, -1, 1] and len(target["masks"]) == 2
    assert target["has_mask"].tolist() == [True, False, True]
    assert target["boxes"][:, 2].max() <= 80 and target["boxes"][:, 3].max() <= 50


def test_worker_processes_give_the_same_samples(folder):
    data = dataset(folder, transforms=v2.ToPureTensor())
    loaded = list(DataLoader(data, batch_size=None, num_workers=1))
    for (image, target), (expected_image, expected) in zip(loaded, (data[0], data[1]), strict=True):
        assert torch.equal(image, expected_image)
        assert all(torch.equal(target[key], value) for key, value in expected.items())


def test_images_above_the_limit_are_refused(folder):
    records = read_records(read_coco_file(folder / "truth.json"))
    with pytest.raises(
        ValueError, match=r".png cannot be .*: it has 80 x 50 pixels, expected at most 0.00"
    ):
        PartiallySupervisedCoco(records, folder, max_megapixels=0.003)[0]
    data = CocoDataModule(*[folder / "truth.json", folder] * 2, max_megapixels=0.003)
    with pytest.raises(ValueError, match=r"it has 80 x 50 pixels, expected at most 0.003 megapixels"):
        data._validation[0]


def test_errors_name_the_file(folder):
    with pytest.raises(FileNotFoundError, match=r"image folder .*absent is not a folder"):
        of_file(folder / "truth.json", folder / "absent")
    (folder / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"image .*a.png does not exist"):
        dataset(folder)[1]
    (folder / "a.png").write_bytes(b"\x89PNG and then nothing")
    with pytest.raises(ValueError, match=r"a.png cannot be read as an image"):
        dataset(folder)[1]
    Image.new("RGB", (8, 9)).save(folder / "a.png")
    with pytest.raises(ValueError, match=r"a.png has 8 x 9 pixels, but the annotation file says 80 x 50"):
        dataset(folder)[1]


# ---- Annotation files as people really have them ----


@pytest.mark.parametrize("name", awkward.WORKS)
def test_what_works_is_trained_on(tmp_path, name):
    change, count, has_mask = awkward.WORKS[name]
    path = awkward.write(tmp_path, awkward.changed(change))
    data = of_file(path, tmp_path, transforms=training_transforms())
    _, target = data[0]
    assert target["image_id"] == 1 and len(target["labels"]) == count
    assert target["has_mask"].tolist() == [has_mask, True][:count]
    assert masks_of_boxes(target).flatten(1).any(1).tolist() == target["has_mask"].tolist()


def test_a_truncated_image_is_named(tmp_path):
    data = of_file(awkward.write(tmp_path), tmp_path)
    image = tmp_path / "1.png"
    image.write_bytes(image.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"1.png cannot be read as an image: .*truncated"):
        data[0]
