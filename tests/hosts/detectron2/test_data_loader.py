import itertools

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from maskx_d2.data import shapes
from maskx_d2.hosts.detectron2.class_split import (
    ClassHasMask,
    class_names,
    evaluated_classes_with_masks,
)
from maskx_d2.hosts.detectron2.data_loader import build_train_loader, register_datasets, remove_masks

from ...data import awkward
from . import tiny


def forget(*names):
    for name in names:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.fixture(autouse=True)
def forget_datasets():
    forget("shapes_train", "shapes_test", "mine")
    yield
    forget("shapes_train", "shapes_test", "mine")


def image_ids(loader, batches):
    return [[image["image_id"] for image in b] for b in itertools.islice(iter(loader), batches)]


def test_instances_of_a_have_masks_and_those_of_b_have_none(shapes_dataset, tmp_path):
    loader = build_train_loader(tiny.data_config(shapes_dataset, tmp_path))
    boxes_only = {shapes.CLASS_NAMES.index(name) for name in shapes.BOXES_ONLY}
    seen = set()
    for batch in itertools.islice(iter(loader), 20):
        for image in batch:
            instances = image["instances"]
            for c, has_mask in zip(
                instances.gt_classes.tolist(), instances.gt_has_mask.tolist(), strict=True
            ):
                assert has_mask is (c not in boxes_only)
                seen.add(has_mask)
    assert seen == {True, False}


def test_the_split_takes_masks_away_as_the_dataset_is_loaded(shapes_dataset, tmp_path):
    (tmp_path / "one.txt").write_text(shapes.CLASS_NAMES[1] + "\n")
    # The test set has masks of all classes.
    cfg = tiny.data_config(
        shapes_dataset,
        tmp_path,
        *("DATASETS.TRAIN", ("shapes_test",), "DATASETS.CLASSES_WITH_MASKS", str(tmp_path / "one.txt")),
    )
    for batch in itertools.islice(iter(build_train_loader(cfg)), 8):
        for image in batch:
            instances = image["instances"]
            assert (instances.gt_has_mask == (instances.gt_classes == 1)).all()
            assert (instances.gt_masks.nonempty() == instances.gt_has_mask).all()


def test_removal_leaves_boxes_and_images_without_annotations():
    dataset = [
        {"annotations": [{"category_id": 0, "segmentation": [1]}, {"category_id": 1, "segmentation": [2]}]},
        {"annotations": [{"category_id": 0}]},
        {},
    ]
    remove_masks(dataset, [False, True])
    assert dataset == [
        {"annotations": [{"category_id": 0}, {"category_id": 1, "segmentation": [2]}]},
        {"annotations": [{"category_id": 0}]},
        {},
    ]


def test_a_later_start_passes_over_the_images_seen_before(shapes_dataset, tmp_path):
    cfg = tiny.data_config(shapes_dataset, tmp_path)
    through = image_ids(build_train_loader(cfg), 20)
    assert image_ids(build_train_loader(cfg, start_iter=13), 7) == through[13:]


def test_number_of_classes_must_be_the_datasets(shapes_dataset, tmp_path):
    cfg = tiny.data_config(shapes_dataset, tmp_path, "MODEL.ROI_HEADS.NUM_CLASSES", 31)
    with pytest.raises(
        ValueError, match=r"NUM_CLASSES is 31, but the dataset 'shapes_train' has 32 classes"
    ):
        build_train_loader(cfg)


def test_datasets_are_registered_once_and_not_over_others(shapes_dataset, tmp_path):
    cfg = tiny.model_config()
    cfg.defrost()
    entry = ["mine", str(shapes_dataset.train_json), str(shapes_dataset.train_images)]
    cfg.DATASETS.REGISTER = [entry]
    register_datasets(cfg)
    register_datasets(cfg)
    assert len(DatasetCatalog.get("mine")) == 24
    assert MetadataCatalog.get("mine").thing_classes == list(shapes.CLASS_NAMES)
    cfg.DATASETS.REGISTER = [["mine", str(shapes_dataset.test_json), str(shapes_dataset.test_images)]]
    with pytest.raises(ValueError, match=r"'mine' is registered already, with .*train.json"):
        register_datasets(cfg)


def test_wrong_entries_are_errors_that_name_them(shapes_dataset):
    cfg = tiny.model_config()
    cfg.defrost()
    json_file, images = str(shapes_dataset.train_json), str(shapes_dataset.train_images)
    for entry, error, message in (
        (["mine", json_file], ValueError, r"expected .name, annotation file, image folder"),
        (["mine", "absent.json", images], FileNotFoundError, r"absent.json of 'mine' is no file"),
        (["mine", json_file, "absent"], FileNotFoundError, "absent of 'mine' is no folder"),
    ):
        cfg.DATASETS.REGISTER = [entry]
        with pytest.raises(error, match=message):
            register_datasets(cfg)


def test_an_unregistered_dataset_is_named():
    with pytest.raises(ValueError, match=r"'nowhere' of DATASETS.TRAIN or DATASETS.TEST is not registered"):
        class_names("nowhere")


@pytest.mark.parametrize("key", ["DATASETS.CLASSES_WITH_MASKS", "TEST.CLASS_SPLIT"])
def test_errors_of_a_split_name_the_key(shapes_dataset, tmp_path, key):
    (tmp_path / "wrong.txt").write_text("purple cow\n")
    for split, error, message in (
        ("E6_A20B60", FileNotFoundError, "is neither a file nor one of all, voc, nonvoc, coco, E1_A20B60"),
        ("voc", ValueError, "names 'person', .* do not include: red ring"),
        (str(tmp_path / "wrong.txt"), ValueError, "names 'purple cow', which the dataset's 32 classes"),
    ):
        cfg = tiny.data_config(shapes_dataset, tmp_path, key, split)
        with pytest.raises(error, match=rf"^{key} is '.*{message}"):
            ClassHasMask(
                cfg.DATASETS.TRAIN[0], cfg.DATASETS.CLASSES_WITH_MASKS
            )() if "MASKS" in key else evaluated_classes_with_masks(cfg, "shapes_test")


# ---- Annotation files as people really have them ----


def first_image(path, num_classes=2):
    """What training sees of the first image of tests/data/awkward.py."""
    overrides = [
        *("DATASETS.REGISTER", [["mine", str(path), str(path.parent)]], "DATASETS.TRAIN", ("mine",)),
        *("MODEL.ROI_HEADS.NUM_CLASSES", num_classes),
        *("SEED", 0, "INPUT.RANDOM_FLIP", "none", "SOLVER.IMS_PER_BATCH", 1),
        *("INPUT.MIN_SIZE_TRAIN", (awkward.HEIGHT,)),
    ]
    loader = iter(build_train_loader(tiny.model_config(*overrides)))
    return next(image for (image,) in loader if image["image_id"] == 1)


@pytest.mark.parametrize("name", awkward.WORKS)
def test_what_works_is_trained_on(tmp_path, name):
    change, count, has_mask = awkward.WORKS[name]
    content = awkward.changed(change)
    path = awkward.write(tmp_path, content)
    instances = first_image(path, len(content["categories"]))["instances"]
    assert len(instances) == count
    assert instances.gt_has_mask.tolist() == [has_mask, True][:count]
    assert instances.gt_masks.tensor.flatten(1).any(1).tolist() == instances.gt_has_mask.tolist()


@pytest.mark.parametrize("name", awkward.FAILS)
def test_what_fails_is_named_with_file_and_annotation(tmp_path, name):
    change, message = awkward.FAILS[name]
    with pytest.raises(ValueError, match=rf"^annotation file .*truth.json: {message}[^\n]*$"):
        first_image(awkward.write(tmp_path, awkward.changed(change)))


def test_a_file_cut_in_half_and_broken_images_are_named(tmp_path):
    path = awkward.write(tmp_path)
    whole, image = path.read_text(), tmp_path / "1.png"
    path.write_text(whole[:200])
    with pytest.raises(ValueError, match=r"annotation file .*truth.json is not JSON"):
        first_image(path)
    path.write_text(whole)
    forget("mine")
    image.write_bytes(image.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"1.png cannot be read as an image: .*truncated"):
        first_image(path)
    forget("mine")
    image.unlink()
    with pytest.raises(FileNotFoundError, match=r"^image .*1.png does not exist$"):
        first_image(path)
