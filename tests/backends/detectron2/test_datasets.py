import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from maskx_d2.backends.detectron2 import datasets
from maskx_d2.backends.detectron2.class_split import class_names, classes_with_masks_of
from maskx_d2.backends.detectron2.datasets import register_datasets, register_visual_genome
from maskx_d2.backends.detectron2.labelled_classes import unpack_classes
from maskx_d2.data.class_names import coco_class_names, visual_genome_class_names
from maskx_d2.demo import shapes

from . import tiny

VISUAL_GENOME = ("vg3k_train", "vg3k_val", "vg3k_test", "coco_2017_train_vg3k", "coco_2017_val_vg3k")


@pytest.fixture(autouse=True)
def forget_datasets():
    tiny.forget("mine")
    yield
    tiny.forget("mine")


@pytest.fixture
def datasets_folder(tmp_path, monkeypatch):
    """Visual Genome and COCO are registered in an empty folder."""
    tiny.forget(*VISUAL_GENOME)
    with monkeypatch.context() as environment:
        environment.setenv("DETECTRON2_DATASETS", str(tmp_path))
        register_visual_genome()
    (tmp_path / "visual_genome").mkdir()
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    yield tmp_path
    tiny.forget(*VISUAL_GENOME)
    register_visual_genome()


def register(*entry):
    register_entry([str(item) for item in entry])


def register_entry(entry):
    cfg = tiny.model_config()
    cfg.defrost()
    cfg.DATASETS.MASKX_REGISTER = [entry]
    register_datasets(cfg)


# ---- DATASETS.MASKX_REGISTER ----


def test_datasets_are_registered_once_and_not_over_others(shapes_dataset):
    entry = ["mine", shapes_dataset.train_json, shapes_dataset.train_images]
    register(*entry)
    register(*entry)
    assert len(DatasetCatalog.get("mine")) == 24
    assert MetadataCatalog.get("mine").thing_classes == list(shapes.CLASS_NAMES)
    with pytest.raises(ValueError, match=r"'mine' is already registered, with .*train.json"):
        register("mine", shapes_dataset.test_json, shapes_dataset.test_images)


def test_wrong_entries_are_errors_that_name_them(shapes_dataset):
    json_file, images = str(shapes_dataset.train_json), str(shapes_dataset.train_images)
    for entry, error, message in (
        (["mine", json_file], ValueError, r"expected .name, annotation file, image folder"),
        (["mine", json_file, images, json_file, "more"], ValueError, r"image folder, class list"),
        ("mine", ValueError, r"the entry 'mine', expected .name, annotation file, image folder"),
        (5, ValueError, r"the entry 5, expected .name, annotation file, image folder"),
        (["mine", json_file, images, None], ValueError, r"expected .name, annotation file, image folder"),
        (["mine", "absent.json", images], FileNotFoundError, r"absent.json of 'mine' is not a file"),
        (["mine", json_file, "absent"], FileNotFoundError, "absent of 'mine' is not a folder"),
        (
            ["mine", json_file, images, "absent.txt"],
            FileNotFoundError,
            "absent.txt of 'mine' is not a file",
        ),
    ):
        with pytest.raises(error, match=message):
            register_entry(entry)


def test_without_a_class_list_records_are_detectron2s(shapes_dataset):
    register("mine", shapes_dataset.train_json, shapes_dataset.train_images)
    found = DatasetCatalog.get("mine")
    expected = load_coco_json(str(shapes_dataset.train_json), str(shapes_dataset.train_images), "stock")
    assert found == expected
    assert MetadataCatalog.get("mine").thing_dataset_id_to_contiguous_id == (
        MetadataCatalog.get("stock").thing_dataset_id_to_contiguous_id
    )
    MetadataCatalog.remove("stock")


def test_with_a_class_list_classes_are_found_by_name_and_images_say_which_are_labelled(
    shapes_dataset, tmp_path
):
    names = ["bear", *reversed(shapes.CLASS_NAMES), "ant"]
    (tmp_path / "list.txt").write_text("\n".join(names))
    register("mine", shapes_dataset.train_json, shapes_dataset.train_images, tmp_path / "list.txt")
    truth = json.loads(shapes_dataset.train_json.read_text())
    name_of = {category["id"]: category["name"] for category in truth["categories"]}
    of_image = {image["id"]: [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        of_image[annotation["image_id"]].append(name_of[annotation["category_id"]])
    for record in DatasetCatalog.get("mine"):
        assert [names[a["category_id"]] for a in record["annotations"]] == of_image[record["image_id"]]
        assert unpack_classes(record["labelled_classes"], 34).tolist() == [False, *[True] * 32, False]
    assert class_names("mine") == names


def test_a_class_list_may_be_an_annotation_file_whose_classes_say_what_they_are_in_coco(
    shapes_dataset, tmp_path
):
    content = json.loads(shapes_dataset.train_json.read_text())
    content["categories"] = [
        {"id": 40 - i, "name": f"{name}.n.01", "coco_name": name}
        for i, name in enumerate(shapes.CLASS_NAMES)
    ] + [{"id": 1, "name": "ant.n.01"}]
    (tmp_path / "joint.json").write_text(json.dumps({**content, "annotations": []}))
    register("mine", shapes_dataset.train_json, shapes_dataset.train_images, tmp_path / "joint.json")
    assert class_names("mine") == ["ant.n.01", *reversed(shapes.CLASS_NAMES)]


def test_a_class_that_the_list_does_not_have_is_named(shapes_dataset, tmp_path):
    (tmp_path / "list.txt").write_text("\n".join(shapes.CLASS_NAMES[1:]))
    register("mine", shapes_dataset.train_json, shapes_dataset.train_images, tmp_path / "list.txt")
    with pytest.raises(
        ValueError, match=rf"train.json names '{shapes.CLASS_NAMES[0]}', which .* 31 classes"
    ):
        DatasetCatalog.get("mine")


# ---- Visual Genome ----


def test_visual_genome_is_registered_with_its_classes_and_which_have_masks():
    for name in VISUAL_GENOME:
        metadata = MetadataCatalog.get(name)
        assert metadata.thing_classes == visual_genome_class_names()
        assert metadata.classes_with_masks == list(range(80)) == classes_with_masks_of(name, "coco")
        assert class_names(name)[:80] == coco_class_names()
        assert len(metadata.thing_dataset_id_to_contiguous_id) == (80 if name.startswith("coco") else 3001)
    train = MetadataCatalog.get("vg3k_train")
    assert train.json_file.endswith("visual_genome/vg3k_train.json")
    coco, original = MetadataCatalog.get("coco_2017_val_vg3k"), MetadataCatalog.get("coco_2017_val")
    assert coco.json_file.endswith(original.json_file)
    assert coco.thing_dataset_id_to_contiguous_id == original.thing_dataset_id_to_contiguous_id


def genome_json(path, names, **of_category):
    categories = [{"id": i + 1, "name": f"{name}.n.{i}", **of_category} for i, name in enumerate(names)]
    content = {
        "images": [{"id": 5, "width": 40, "height": 30, "file_name": "VG_100K/5.jpg"}],
        "annotations": [{"id": 9, "image_id": 5, "category_id": 3001, "bbox": [1, 2, 3, 4], "iscrowd": 0}],
        "categories": categories,
    }
    path.write_text(json.dumps(content))


def test_what_prepare_writes_is_loaded(datasets_folder):
    genome_json(datasets_folder / "visual_genome" / "vg3k_val.json", visual_genome_class_names())
    (record,) = DatasetCatalog.get("vg3k_val")
    assert record["file_name"] == str(datasets_folder / "visual_genome" / "VG_100K" / "5.jpg")
    assert [a["category_id"] for a in record["annotations"]] == [3000]
    assert "labelled_classes" not in record


def test_a_class_that_visual_genome_has_no_box_of_is_not_labelled_there(datasets_folder):
    path = datasets_folder / "visual_genome" / "vg3k_train.json"
    genome_json(path, visual_genome_class_names(), instance_count=1)
    content = json.loads(path.read_text())
    hair_drier = coco_class_names().index("hair drier")
    content["categories"][hair_drier]["instance_count"] = 0
    path.write_text(json.dumps(content))
    (record,) = DatasetCatalog.get("vg3k_train")
    is_labelled = unpack_classes(record["labelled_classes"], 3001)
    assert (~is_labelled).nonzero()[:, 0].tolist() == [hair_drier]


def test_other_classes_than_the_registered_are_an_error_that_says_how_to_go_on(datasets_folder):
    names = visual_genome_class_names()
    names[100] = "gnu"
    genome_json(datasets_folder / "visual_genome" / "vg3k_val.json", names)
    with pytest.raises(
        ValueError, match=r"vg3k_val.json has 3001 classes, 1 of which .* DATASETS.MASKX_REGISTER"
    ):
        DatasetCatalog.get("vg3k_val")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("vg3k_train", "maskx prepare vg3k writes it"), ("coco_2017_val_vg3k", "datasets/README.md says")],
)
def test_a_file_that_is_not_there_yet_is_named_with_where_it_comes_from(datasets_folder, name, hint):
    with pytest.raises(FileNotFoundError, match=rf"\.json is not a file: {hint}"):
        DatasetCatalog.get(name)


def test_coco_is_loaded_with_its_classes_among_those_of_visual_genome(datasets_folder, coco_mini):
    annotations = coco_mini / "annotations" / "instances_val2017.json"
    (datasets_folder / "coco" / "annotations" / annotations.name).symlink_to(annotations)
    found = DatasetCatalog.get("coco_2017_val_vg3k")
    expected = load_coco_json(str(annotations), str(datasets_folder / "coco" / "val2017"), "stock")
    for record in found:
        assert unpack_classes(record.pop("labelled_classes"), 3001).nonzero()[:, 0].tolist() == list(
            range(80)
        )
    assert found == expected
    MetadataCatalog.remove("stock")


def test_coco_with_other_classes_is_an_error(datasets_folder):
    path = datasets_folder / "coco" / "annotations" / "instances_val2017.json"
    genome_json(path, visual_genome_class_names())
    with pytest.raises(ValueError, match=r"instances_val2017.json has other classes, expected COCO's 80"):
        DatasetCatalog.get("coco_2017_val_vg3k")


def test_names_that_somebody_has_registered_are_left_alone():
    tiny.forget("vg3k_test")
    DatasetCatalog.register("vg3k_test", lambda: ["theirs"])
    try:
        datasets.register_visual_genome()
        assert DatasetCatalog.get("vg3k_test") == ["theirs"]
    finally:
        tiny.forget("vg3k_test")
        register_visual_genome()
