import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from maskx_d2.demo import textured_forms


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return textured_forms.generate(tmp_path_factory.mktemp("forms"), num_train=150, num_test=10, seed=3)


def load(path):
    return json.loads(path.read_text())


def test_30_classes_of_which_a_third_has_boxes_only_each_form_and_texture_among_them(dataset):
    assert len(textured_forms.CLASS_NAMES) == 30 and len(textured_forms.BOXES_ONLY) == 10
    textures, forms = zip(*(name.split() for name in textured_forms.BOXES_ONLY), strict=True)
    assert set(textures) == set(textured_forms.TEXTURES) and set(forms) == set(textured_forms.FORMS)
    with_masks = dataset.split_file.read_text().splitlines()
    assert sorted(with_masks + list(textured_forms.BOXES_ONLY)) == sorted(textured_forms.CLASS_NAMES)


def test_every_class_occurs_at_sizes_from_a_quarter_to_more_than_half_of_the_image(dataset):
    content = load(dataset.all_masks_json)
    names = {c["id"]: c["name"] for c in content["categories"]}
    assert {names[a["category_id"]] for a in content["annotations"]} == set(names.values())
    widths = [a["bbox"][2] for a in content["annotations"]]
    assert min(widths) < 36 and max(widths) > 70


def test_masks_are_what_can_be_seen_of_their_boxes_and_do_not_overlap(dataset):
    content = load(dataset.test_json)
    for image in content["images"]:
        annotations = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        masks = [mask_util.decode(a["segmentation"]).astype(bool) for a in annotations]
        assert np.sum(masks, axis=0).max() == 1
        for annotation, mask in zip(annotations, masks, strict=True):
            y, x = np.nonzero(mask)
            assert annotation["bbox"] == [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]


def test_textures_show_and_colours_do_not_tell_the_class(dataset):
    """Brightness within an object varies unless it is plain; its hue is another each time."""
    content = load(dataset.all_masks_json)
    names = {c["id"]: c["name"] for c in content["categories"]}
    files = {i["id"]: i["file_name"] for i in content["images"]}
    variation, hues = {}, {}
    for annotation in content["annotations"]:
        pixels = np.asarray(Image.open(dataset.train_images / files[annotation["image_id"]]), dtype=float)
        inside = pixels[mask_util.decode(annotation["segmentation"]).astype(bool)]
        texture = names[annotation["category_id"]].split()[0]
        variation.setdefault(texture, []).append(inside.mean(1).std() / inside.mean())
        hues.setdefault(texture, []).append(inside.mean(0).argmax())
    plain = np.mean(variation.pop("plain"))
    assert all(np.mean(values) > 2.5 * plain for values in variation.values())
    assert all(set(values) == {0, 1, 2} for values in hues.values())


def test_the_same_seed_gives_the_same_files(tmp_path):
    first, second, other = (
        textured_forms.generate(tmp_path / name, num_train=3, num_test=1, seed=seed)
        for name, seed in (("first", 1), ("second", 1), ("other", 2))
    )
    assert first.all_masks_json.read_bytes() == second.all_masks_json.read_bytes()
    assert first.all_masks_json.read_bytes() != other.all_masks_json.read_bytes()
    name = "000001.png"
    assert (first.train_images / name).read_bytes() == (second.train_images / name).read_bytes()
