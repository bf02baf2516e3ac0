import copy
import itertools
from functools import partial

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets import register_coco_instances
from detectron2.utils import comm
from torch.utils.data import Sampler

from maskx_d2.backends.detectron2 import data_loader
from maskx_d2.backends.detectron2.class_split import (
    ClassHasMask,
    evaluated_classes_with_masks,
)
from maskx_d2.backends.detectron2.data_loader import (
    build_test_loader,
    build_train_loader,
    load_training_data,
    mixing_sampler,
    remove_masks,
)
from maskx_d2.backends.detectron2.datasets import register_datasets
from maskx_d2.demo import shapes

from ...data import awkward, exports
from . import tiny


@pytest.fixture(autouse=True)
def forget_datasets():
    tiny.forget("shapes_train", "shapes_test", "mine")
    yield
    tiny.forget("shapes_train", "shapes_test", "mine")


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
    (tmp_path / "one.txt").write_text(shapes.CLASS_NAMES[13] + "\n")
    # The test set has masks of all classes.
    cfg = tiny.data_config(
        shapes_dataset,
        tmp_path,
        *("DATASETS.TRAIN", ("shapes_test",), "DATASETS.CLASSES_WITH_MASKS", str(tmp_path / "one.txt")),
    )
    seen = set()
    for batch in itertools.islice(iter(build_train_loader(cfg)), 8):
        for image in batch:
            instances = image["instances"]
            assert (instances.gt_has_mask == (instances.gt_classes == 13)).all()
            assert (instances.gt_masks.nonempty() == instances.gt_has_mask).all()
            seen |= set(instances.gt_has_mask.tolist())
    assert seen == {True, False}


def test_a_dataset_of_ones_own_has_the_split_of_the_config_and_stays_as_it_is(shapes_dataset, tmp_path):
    (tmp_path / "one.txt").write_text(shapes.CLASS_NAMES[13] + "\n")
    cfg = tiny.data_config(
        shapes_dataset,
        tmp_path,
        *("DATASETS.TRAIN", ("shapes_test",), "DATASETS.CLASSES_WITH_MASKS", str(tmp_path / "one.txt")),
        *("DATALOADER.NUM_WORKERS", 0),
    )
    own = DatasetCatalog.get("shapes_test")[:6]
    before = copy.deepcopy(own)
    seen = set()
    for batch in itertools.islice(iter(build_train_loader(cfg, dataset=own)), 6):
        for image in batch:
            instances = image["instances"]
            assert (instances.gt_has_mask == (instances.gt_classes == 13)).all()
            seen.add(image["image_id"])
    assert seen <= {image["image_id"] for image in own} and len(seen) == 6
    assert own == before


def test_loaders_take_mappers_samplers_and_augmentations_as_detectron2s_do(shapes_dataset, tmp_path):
    cfg = tiny.data_config(shapes_dataset, tmp_path, "DATALOADER.NUM_WORKERS", 0)
    train = DatasetCatalog.get("shapes_train")
    wide = [T.Resize((40, 80))]

    def first(loader):
        return next(iter(loader))

    own = first(build_train_loader(cfg, mapper=lambda image: {**image, "own": 1}, sampler=Ordered(8)))
    assert [(i["image_id"], i["own"]) for i in own] == [(image["image_id"], 1) for image in train[:2]]
    assert {i["image"].shape[1:] for i in first(build_train_loader(cfg, augmentations=wide))} == {(40, 80)}
    assert first(build_train_loader(cfg, augmentations=wide))[0]["instances"].has("gt_has_mask")
    test = DatasetCatalog.get("shapes_test")
    ids = [image["image_id"] for image in test]

    def seen(**options):
        batches = build_test_loader(cfg, "shapes_test", **{"mapper": lambda i: i["image_id"], **options})
        return [image_id for batch in batches for image_id in batch]

    assert seen() == ids
    assert seen(sampler=[2, 0]) == [ids[2], ids[0]]
    assert seen(dataset=test[1:3]) == ids[1:3]
    (image,) = first(build_test_loader(cfg, "shapes_test", augmentations=wide))
    assert image["image"].shape[1:] == (40, 80)
    for build in (build_train_loader, partial(build_test_loader, dataset_name="shapes_test")):
        with pytest.raises(ValueError, match="a mapper and augmentations are given, expected only one"):
            build(cfg, mapper=dict, augmentations=wide)


class Ordered(Sampler):
    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return itertools.cycle(range(self.count))


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


@pytest.mark.parametrize("key", ["DATASETS.CLASSES_WITH_MASKS", "TEST.MASKX_CLASS_SPLIT"])
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


# ---- Several datasets ----


def mixed(shapes_dataset, tmp_path, ratio, **keys):
    """24 images of one dataset, then 8 of another."""
    overrides = [word for pair in keys.items() for word in pair]
    cfg = tiny.data_config(
        shapes_dataset,
        tmp_path,
        *(
            "DATASETS.TRAIN",
            ("shapes_train", "shapes_test"),
            "DATALOADER.MASKX_DATASET_RATIO",
            ratio,
            *overrides,
        ),
    )
    dataset, sizes = load_training_data(cfg)
    return dataset, mixing_sampler(sizes, ratio, seed=cfg.SEED)


@pytest.mark.parametrize(("ratio", "share"), [([1, 1], 1 / 2), ([1, 3], 3 / 4), ([3.0, 0.5], 1 / 7)])
def test_images_are_drawn_from_datasets_as_the_ratio_says(shapes_dataset, tmp_path, ratio, share):
    dataset, sampler = mixed(shapes_dataset, tmp_path, ratio)
    assert len(dataset) == 32
    drawn = list(itertools.islice(iter(sampler), 6400))
    assert sum(i >= 24 for i in drawn) / len(drawn) == pytest.approx(share, abs=0.02)
    assert set(drawn) == set(range(32))


def test_the_mix_is_that_of_the_seed(shapes_dataset, tmp_path):
    first, second, other = (
        list(itertools.islice(iter(mixed(shapes_dataset, tmp_path, [1, 1], SEED=seed)[1]), 100))
        for seed in (4, 4, 5)
    )
    assert first == second != other


def test_a_mixed_loader_starts_later_where_it_would_be_and_removes_masks_of_both(shapes_dataset, tmp_path):
    cfg = tiny.data_config(
        shapes_dataset,
        tmp_path,
        *("DATASETS.TRAIN", ("shapes_train", "shapes_test"), "DATALOADER.MASKX_DATASET_RATIO", [1, 1]),
    )
    loader = build_train_loader(cfg)
    assert image_ids(build_train_loader(cfg, start_iter=5), 7) == image_ids(loader, 12)[5:]
    boxes_only = {shapes.CLASS_NAMES.index(name) for name in shapes.BOXES_ONLY}
    for batch in itertools.islice(iter(loader), 12):
        for image in batch:
            instances = image["instances"]
            expected = [c not in boxes_only for c in instances.gt_classes.tolist()]
            assert instances.gt_has_mask.tolist() == expected


@pytest.mark.parametrize("ratio", [[1], [1, 0], [1, 1, 1], ["a", 1], [True, 1], [1, float("inf")]])
def test_a_ratio_that_does_not_fit_the_datasets_is_an_error(shapes_dataset, tmp_path, ratio):
    with pytest.raises(ValueError, match=r"DATALOADER.MASKX_DATASET_RATIO is .* each of the 2 datasets"):
        mixed(shapes_dataset, tmp_path, ratio)


def test_a_ratio_and_another_sampler_exclude_each_other(shapes_dataset, tmp_path):
    with pytest.raises(
        ValueError, match=r"SAMPLER_TRAIN is 'RepeatFactorTrainingSampler', expected 'Train"
    ):
        mixed(
            shapes_dataset, tmp_path, [1, 1], **{"DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler"}
        )


def partly_labelled(shapes_dataset, tmp_path, *overrides):
    """A config on a dataset that labels 32 of 34 classes."""
    names = ["bear", *reversed(shapes.CLASS_NAMES), "ant"]
    (tmp_path / "list.txt").write_text("\n".join(names))
    files = shapes_dataset.train_json, shapes_dataset.train_images, tmp_path / "list.txt"
    return tiny.model_config(
        *("DATASETS.MASKX_REGISTER", [["mine", *map(str, files)]]),
        *("DATASETS.TRAIN", ("mine",), "MODEL.ROI_HEADS.NUM_CLASSES", 34, "SEED", 0),
        *("DATASETS.CLASSES_WITH_MASKS", str(shapes_dataset.split_file), "SOLVER.IMS_PER_BATCH", 2),
        *overrides,
    )


@pytest.mark.parametrize("ratio", [[], [1, 1]])
def test_datasets_of_other_classes_are_not_trained_on_together(shapes_dataset, tmp_path, ratio):
    """The same number of them, in another order."""
    names = "\n".join(reversed(shapes.CLASS_NAMES))
    (tmp_path / "list.txt").write_text(names)
    cfg = tiny.data_config(shapes_dataset, tmp_path)
    cfg.defrost()
    files = shapes_dataset.test_json, shapes_dataset.test_images, tmp_path / "list.txt"
    cfg.DATASETS.MASKX_REGISTER = [["mine", *map(str, files)]]
    register_datasets(cfg)
    cfg.DATASETS.TRAIN, cfg.DATALOADER.MASKX_DATASET_RATIO = ("shapes_train", "mine"), ratio
    with pytest.raises(ValueError, match=r"other classes|different metadata 'thing_classes'"):
        build_train_loader(cfg)


def test_roi_heads_that_would_take_unlabelled_classes_for_background_are_refused(shapes_dataset, tmp_path):
    cfg = partly_labelled(shapes_dataset, tmp_path, "MODEL.MASK_ON", False)
    cfg.defrost()
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    with pytest.raises(ValueError, match=r"does not label all classes: MODEL.ROI_HEADS.NAME must be"):
        next(iter(build_train_loader(cfg)))


def test_images_say_which_classes_are_labelled_where_not_all_are(shapes_dataset, tmp_path):
    names = ["bear", *reversed(shapes.CLASS_NAMES), "ant"]
    for masks in (True, False):
        cfg = partly_labelled(shapes_dataset, tmp_path, "MODEL.MASK_ON", masks)
        for batch in itertools.islice(iter(build_train_loader(cfg)), 5):
            for image in batch:
                instances = image["instances"]
                assert instances.gt_labelled_classes.is_labelled.tolist() == [False, *[True] * 32, False]
                assert len(instances.gt_labelled_classes) == len(instances) > 0
                if masks:
                    expected = [names[c] not in shapes.BOXES_ONLY for c in instances.gt_classes.tolist()]
                    assert instances.gt_has_mask.tolist() == expected
    without_list = tiny.data_config(shapes_dataset, tmp_path)
    batch = next(iter(build_train_loader(without_list)))
    assert not any(image["instances"].has("gt_labelled_classes") for image in batch)


# ---- Annotation files as people really have them ----


def first_image(path, num_classes=2):
    """What training sees of the first image of tests/data/awkward.py."""
    overrides = [
        *("DATASETS.MASKX_REGISTER", [["mine", str(path), str(path.parent)]], "DATASETS.TRAIN", ("mine",)),
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
    num_classes = len({category["name"] for category in content["categories"]})
    instances = first_image(path, num_classes)["instances"]
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
    tiny.forget("mine")
    image.write_bytes(image.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"1.png cannot be read as an image: .*truncated"):
        first_image(path)
    tiny.forget("mine")
    image.unlink()
    with pytest.raises(FileNotFoundError, match=r"^image .*1.png does not exist$"):
        first_image(path)


def test_ranks_and_workers_of_a_seeded_run_draw_other_scales_and_the_same_when_started_again(
    shapes_dataset, tmp_path, monkeypatch
):
    sides = tuple(range(64, 128, 4))
    options = ["INPUT.MIN_SIZE_TRAIN", sides, "DATALOADER.NUM_WORKERS", 2]
    options += ["DATALOADER.ASPECT_RATIO_GROUPING", False]
    cfg = tiny.data_config(shapes_dataset, tmp_path, *options)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "shared_random_seed", lambda: 7)
    monkeypatch.setattr(data_loader, "load_once_per_node", lambda load, datasets: load())

    def drawn(rank):
        monkeypatch.setattr(comm, "get_rank", lambda: rank)
        batches = itertools.islice(iter(build_train_loader(cfg)), 16)
        return [[image["image"].shape[-1] for image in batch] for batch in batches]

    first, second = drawn(0), drawn(1)
    assert len(first) == 16 and {side for batch in first for side in batch} <= set(sides)
    assert first != second
    assert first[::2] != first[1::2]  # of the two workers
    assert drawn(0) == first


# ---- Data that would train nothing, without a word ----


def load(path, *overrides):
    return build_train_loader(
        tiny.model_config(
            *(
                "DATASETS.MASKX_REGISTER",
                [["mine", str(path), str(path.parent)]],
                "DATASETS.TRAIN",
                ("mine",),
            ),
            *("MODEL.ROI_HEADS.NUM_CLASSES", 2, "SEED", 0, "SOLVER.IMS_PER_BATCH", 1, *overrides),
        )
    )


def test_masks_that_are_all_crowd_regions_are_refused_with_the_reason(tmp_path):
    content = exports.cvat_masks()
    path = awkward.write(tmp_path, content)
    message = r"has a mask .*; 2 annotations are crowd regions \(iscrowd 1\).*check-dataset --fix-crowd"
    with pytest.raises(ValueError, match=message):
        load(path)
    tiny.forget("mine")
    for annotation in content["annotations"]:
        annotation.update(iscrowd=1)
    awkward.write(tmp_path, content)
    with pytest.raises(ValueError, match=r"mine has no image with an object, .*; 4 annotations are crowd"):
        load(path)


@pytest.mark.parametrize("sampler", ["RandomSubsetTrainingSampler", "RepeatFactorTrainingSampler"])
@pytest.mark.parametrize("seed", [3, -1])
def test_detectron2s_other_samplers_have_their_order_again_when_a_run_resumes(
    shapes_dataset, tmp_path, sampler, seed
):
    cfg = tiny.data_config(shapes_dataset, tmp_path, "DATALOADER.SAMPLER_TRAIN", sampler, "SEED", seed)
    cfg.defrost()
    cfg.DATALOADER.RANDOM_SUBSET_RATIO, cfg.DATALOADER.REPEAT_THRESHOLD = 0.5, 0.3
    through = image_ids(build_train_loader(cfg), 20)
    np.random.seed(99)  # another process
    assert image_ids(build_train_loader(cfg, start_iter=7), 13) == through[7:]


def test_detectron2s_own_datasets_lose_what_cannot_be_used(tmp_path):
    content = awkward.content()
    content["annotations"][0].update(segmentation=[[-v for v in awkward.POLYGON]])
    content["annotations"][1].update(bbox=[90, 5, 20, 10])
    path = awkward.write(tmp_path, content)
    register_coco_instances("mine", {}, str(path), str(tmp_path))
    loader = build_train_loader(
        tiny.model_config(
            *("DATASETS.TRAIN", ("mine",), "MODEL.ROI_HEADS.NUM_CLASSES", 2, "SEED", 0),
            *("SOLVER.IMS_PER_BATCH", 1, "INPUT.RANDOM_FLIP", "none"),
        )
    )
    said = loader.training_data
    assert (said.num_images, sum(said.num_objects), said.num_masks) == (2, 3, 2)
    first = next(image for (image,) in iter(loader) if image["image_id"] == 1)["instances"]
    assert first.gt_has_mask.tolist() == [False]
