import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from maskx_d2.demo import shapes


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return shapes.generate(tmp_path_factory.mktemp("shapes"), num_train=60, num_test=10, seed=3)


def load(path):
    return json.loads(path.read_text())


def test_32_classes_of_which_8_have_boxes_only_each_colour_and_shape_among_them(dataset):
    assert len(shapes.CLASS_NAMES) == 32 and len(shapes.BOXES_ONLY) == 8
    colours, names = zip(*(name.split() for name in shapes.BOXES_ONLY), strict=True)
    assert set(colours) == set(shapes.COLOURS) and set(names) == set(shapes.SHAPES)
    with_masks = dataset.split_file.read_text().splitlines()
    assert sorted(with_masks + list(shapes.BOXES_ONLY)) == sorted(shapes.CLASS_NAMES)


def test_training_masks_are_those_of_a_alone_and_test_masks_are_complete(dataset):
    train, test = load(dataset.train_json), load(dataset.test_json)
    boxes_only = {c["id"] for c in train["categories"] if c["name"] in shapes.BOXES_ONLY}
    seen = {a["category_id"] for a in train["annotations"]}
    assert boxes_only & seen and seen - boxes_only
    for annotation in train["annotations"]:
        assert ("segmentation" in annotation) is (annotation["category_id"] not in boxes_only)
    assert all("segmentation" in a for a in test["annotations"])
    assert (len(train["images"]), len(test["images"])) == (60, 10)


def test_the_oracles_annotations_are_the_same_with_all_masks(dataset):
    train, complete = load(dataset.train_json), load(dataset.all_masks_json)
    assert complete["images"] == train["images"] and complete["categories"] == train["categories"]
    assert all("segmentation" in a for a in complete["annotations"])
    for annotation, whole in zip(train["annotations"], complete["annotations"], strict=True):
        assert annotation == {k: v for k, v in whole.items() if k in annotation}


def test_boxes_and_areas_are_those_of_the_visible_masks(dataset):
    content = load(dataset.test_json)
    for annotation in content["annotations"]:
        mask = mask_util.decode(annotation["segmentation"])
        y, x = np.nonzero(mask)
        expected = [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]
        assert annotation["bbox"] == expected
        assert annotation["area"] == mask.sum() > 0
        assert mask.shape == (shapes.IMAGE_SIDE, shapes.IMAGE_SIDE)


def test_visible_masks_do_not_overlap_and_show_their_colour(dataset):
    content = load(dataset.test_json)
    names = {c["id"]: c["name"] for c in content["categories"]}
    for image in content["images"]:
        pixels = np.asarray(Image.open(dataset.test_images / image["file_name"])).astype(float)
        annotations = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        masks = [mask_util.decode(a["segmentation"]).astype(bool) for a in annotations]
        assert np.sum(masks, axis=0).max() == 1
        for annotation, mask in zip(annotations, masks, strict=True):
            found = pixels[mask].mean(axis=0)
            distance = {c: np.abs(found - rgb).sum() for c, rgb in shapes.COLOURS.items()}
            assert names[annotation["category_id"]].split()[0] == min(distance, key=distance.get)


def test_pairs_share_nearly_one_box(dataset):
    content = load(dataset.train_json)
    boxes = {}
    for a in content["annotations"]:
        boxes.setdefault(a["image_id"], []).append(a["bbox"])
    overlaps = []
    for of_image in boxes.values():
        iou = mask_util.iou(of_image, of_image, [0] * len(of_image))
        overlaps += list(iou[np.triu_indices(len(of_image), 1)])
    close = [o for o in overlaps if o > 0]
    assert len(close) > 30
    assert np.median(close) > 0.6


def test_the_same_seed_gives_the_same_files(dataset, tmp_path):
    again = shapes.generate(tmp_path, num_train=60, num_test=10, seed=3)
    other = shapes.generate(tmp_path / "other", num_train=60, num_test=10, seed=4)
    assert again.train_json.read_text() == dataset.train_json.read_text()
    assert other.train_json.read_text() != dataset.train_json.read_text()
    for name in ("000001.png", "000060.png"):
        assert (again.train_images / name).read_bytes() == (dataset.train_images / name).read_bytes()


@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_each_shape_fills_its_box(shape):
    u, v = np.meshgrid(np.linspace(-1.2, 1.2, 241), np.linspace(-1.2, 1.2, 241))
    inside = shapes._inside(shape, u[:1], v[:, :1], stroke=0.4)
    y, x = np.nonzero(inside)
    for extent in (u[0][x.min()], v[y.min(), 0], -u[0][x.max()], -v[y.max(), 0]):
        assert extent == pytest.approx(-1, abs=0.03)
    assert 0.15 < inside.mean() * 1.44 < 0.75
