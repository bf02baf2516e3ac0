import json
from dataclasses import replace
from functools import partial

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image
from pycocotools.coco import COCO

from maskx_d2.data.rle import encode
from maskx_d2.evaluation.pictures import ClassStyle
from maskx_d2.inference.detector import MaskPredictor, PredictedMask
from maskx_d2.inference.fill_masks import fill_masks, summary
from maskx_d2.inference.mask_comparison import MIN_MASKS
from maskx_d2.inference.masks_in_boxes import find_masks

WIDTH, HEIGHT = 60, 50


class Detector(MaskPredictor):
    """Its masks are the left halves of the boxes, its scores a tenth of the category id."""

    def __init__(self):
        self.style = ClassStyle(names={1: "cat", 2: "dog", 9: "hen"}, with_masks=frozenset({1}))
        self.seen = []

    def to(self, device):
        return self

    def masks_in_boxes(self, images, objects):
        self.seen.append([len(of_image.boxes) for of_image in objects])
        return [
            [self.mask(image, *known) for known in zip(o.boxes, o.category_ids, strict=True)]
            for image, o in zip(images, objects, strict=True)
        ]

    def mask(self, image, box, category_id):
        assert image.mode == "RGB"
        x0, y0, x1, y1 = (round(side) for side in box)
        mask = np.zeros((image.height, image.width), bool)
        mask[y0:y1, x0 : (x0 + x1) // 2] = True
        return PredictedMask(encode(mask), category_id / 10)


def annotation(number, image_id, category_id, bbox, **more):
    return {"id": number, "image_id": image_id, "category_id": category_id, "bbox": bbox, **more}


SQUARE = [[10, 10, 20, 10, 20, 20, 10, 20]]
ANNOTATIONS = [
    annotation(1, 1, 3, [10, 10, 10, 10], segmentation=SQUARE, iscrowd=0, mine={"a": [1.5, None]}),
    annotation(2, 1, 5, [30, 10, 20, 20], iscrowd=0, area=7),
    annotation(3, 2, 5, [30, 10, 20, 20], segmentation=[], iscrowd=0),
    annotation(4, 2, 3, [5, 5, 10, 10], segmentation=None),
    annotation(5, 2, 3, [5, 5, 20, 20], iscrowd=1),
    annotation(6, 2, 3, [5, 5, 0, 20]),
    annotation(7, 2, 3, [100, 5, 10, 20]),
    annotation(8, 2, 7, [5, 5, 10, 10]),
    annotation(9, 3, 3, [-5, -5, 25, 25], segmentation=[[1, 1, 2, 2]]),
    annotation(10, 4, 3, [5, 5, 10, 10]),
]


@pytest.fixture
def dataset(tmp_path):
    """The annotation file, and the folder of images, of which the last does not exist."""
    content = {
        "info": {"year": 2026, "z": 1, "a": 2},
        "annotations": ANNOTATIONS,
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT, "licence": i}
            for i in range(1, 5)
        ],
        "categories": [
            {"id": 3, "name": "cat"},
            {"id": 5, "name": "dog", "supercategory": "animal"},
            {"id": 7, "name": "unicorn"},
        ],
        "licences": [],
    }
    (tmp_path / "in.json").write_text(json.dumps(content))
    (tmp_path / "images").mkdir()
    for i in range(1, 4):
        Image.new("L", (WIDTH, HEIGHT)).save(tmp_path / "images" / f"{i}.png")
    return tmp_path / "in.json", tmp_path / "images"


def fill(dataset, detector=None, name="out.json", batch_size=4, **options):
    output = dataset[0].parent / name
    find = partial(find_masks, batch_size=batch_size)
    filled = fill_masks(detector or Detector(), *dataset, output, model="a", find_masks=find, **options)
    return filled, json.loads(output.read_text())


def whole_box(image, box):
    x0, y0, x1, y1 = (round(side) for side in box)
    mask = np.zeros((image.height, image.width), bool)
    mask[y0:y1, x0:x1] = True
    return PredictedMask(encode(mask), 0.9)


class Teacher(Detector):
    """It knows no class: all have the same score."""

    source = "teacher"

    def __init__(self):
        super().__init__()
        self.style = None

    def mask(self, image, box, category_id):
        return replace(super().mask(image, box, 0), score=0.5)


def test_a_teacher_fills_masks_of_all_classes_and_signs_them(dataset):
    filled, content = fill(dataset, Teacher(), also_replace=True)
    new = {a["id"]: a for a in content["annotations"] if a.get("segmentation_source")}
    with_pixels = {1, 2, 3, 4, 8}
    assert set(new) >= with_pixels and new[8]["category_id"] == 7
    assert {a["segmentation_source"] for a in new.values()} == {"teacher"}
    assert {a["mask_score"] for a in new.values()} == {0.5}
    printed = summary(filled)
    (total,) = [line for line in printed.splitlines() if "all classes" in line]
    assert [cell.strip() for cell in total.strip("|").split("|")] == ["all classes", "", "1", "0.500"]
    assert "does not know" not in printed and "trained with" not in printed


def test_a_model_and_a_teacher_are_compared_and_the_model_fills(dataset):
    filled, content = fill(dataset, teacher=Teacher(), also_replace=True)
    assert {a["segmentation_source"] for a in content["annotations"] if "mask_score" in a} == {"predicted"}
    assert filled.comparison.models == ["model", "teacher"]
    (measured,) = filled.comparison.measured
    assert measured.ious == {"model": 0.5, "teacher": 0.5}
    unicorn = next(a for a in content["annotations"] if a["id"] == 8)
    assert "segmentation" not in unicorn  # the model does not know its class
    assert filled.left["annotations of classes that the model does not know"] == 1


def test_the_better_of_both_fills_a_class_and_masks_that_exist_are_kept(dataset):
    content = json.loads(dataset[0].read_text())
    content["annotations"] += [
        annotation(100 + i, 1 + i % 3, 5, [10, 10, 10, 10], segmentation=SQUARE) for i in range(MIN_MASKS)
    ]
    dataset[0].write_text(json.dumps(content))
    better = Teacher()
    better.mask = lambda image, box, category_id: whole_box(image, box)
    filled, after = fill(dataset, teacher=better, per_class_best=True)
    found = {a["id"]: a.get("segmentation_source") for a in after["annotations"]}
    assert filled.choices["dog"].model == "teacher" and filled.choices["dog"].reason == "measured"
    assert filled.choices["cat"].model == "model" and filled.choices["cat"].reason == "not known"
    assert (found[2], found[3], found[8]) == ("teacher", "teacher", "teacher")
    assert found[4] == "predicted"
    kept = [a for a in after["annotations"] if a["id"] >= 100 or a["id"] == 1]
    assert kept == [a for a in content["annotations"] if a["id"] >= 100 or a["id"] == 1]
    assert "filled by" in summary(filled)


def test_masks_that_were_predicted_are_no_truth_to_compare_with(dataset):
    content = json.loads(dataset[0].read_text())
    content["annotations"][0]["segmentation_source"] = "teacher"
    dataset[0].write_text(json.dumps(content))
    filled, _ = fill(dataset, also_replace=True)
    assert filled.comparison.measured == []


def test_two_models_that_are_interrupted_continue_where_they_were(dataset):
    stopping = Stopping()
    stopping.source, stopping.style = "teacher", None
    with pytest.raises(KeyboardInterrupt):
        fill(dataset, teacher=stopping, also_replace=True, batch_size=1)
    names = {path.name for path in dataset[0].parent.glob("*.unfinished")}
    assert names == {"out.json.unfinished", "out.json.teacher.unfinished"}
    model, teacher = Detector(), Teacher()
    _, resumed = fill(dataset, model, teacher=teacher, also_replace=True, batch_size=1)
    assert model.seen == [] and 0 < len(teacher.seen) < 3
    _, whole = fill(dataset, name="whole.json", teacher=Teacher(), also_replace=True, batch_size=1)
    assert resumed == whole
    assert not list(dataset[0].parent.glob("*.unfinished"))


def test_what_has_no_mask_gets_one_and_all_else_stays(dataset):
    filled, content = fill(dataset)
    before = json.loads(dataset[0].read_text())
    assert list(content) == list(before)
    assert {k: v for k, v in content.items() if k != "annotations"} == {
        k: v for k, v in before.items() if k != "annotations"
    }
    new = {}
    for old, now in zip(before["annotations"], content["annotations"], strict=True):
        if "mask_score" not in now:
            assert json.dumps(now) == json.dumps(old)  # the order of keys too
            continue
        new[now["id"]] = now
        added = ("segmentation", "segmentation_source", "mask_score")
        assert {k: v for k, v in now.items() if k not in added} == {
            k: v for k, v in old.items() if k not in added
        }
        assert list(now)[: len(old)] == list(old) and now["segmentation_source"] == "predicted"
    assert {i: a["mask_score"] for i, a in new.items()} == {2: 0.2, 3: 0.2, 4: 0.1, 9: 0.1}
    mask = mask_util.decode(new[2]["segmentation"])
    assert mask.sum() == mask[10:30, 30:40].sum() == 200
    assert mask_util.area(new[9]["segmentation"]) == 10 * 20  # of the part within the image
    assert filled.num_filled == 4
    assert filled.left == {
        "crowd regions": 1,
        "boxes without area in the image": 2,
        "annotations of classes that the model does not know": 1,
        "annotations of images that cannot be read": 1,
    }
    (reason,) = filled.passed_over
    assert "4.png does not exist" in reason
    assert not list(dataset[0].parent.glob("*.unfinished"))


def test_a_file_without_anything_to_fill_comes_out_equal(dataset):
    content = json.loads(dataset[0].read_text())
    content["annotations"] = content["annotations"][:1]
    dataset[0].write_text(json.dumps(content))
    detector = Detector()
    filled, again = fill(dataset, detector)
    assert json.dumps(again) == json.dumps(content) and filled.num_filled == 0 and detector.seen == []


def test_polygons_are_the_same_masks_and_pycocotools_reads_them(dataset):
    _, rle = fill(dataset)
    _, polygons = fill(dataset, name="polygons.json", form="polygon")
    coco = COCO(dataset[0].parent / "polygons.json")
    for a, b in zip(rle["annotations"], polygons["annotations"], strict=True):
        if a.get("segmentation_source"):
            assert isinstance(b["segmentation"], list)
            assert mask_util.area(coco.annToRLE(b)) == mask_util.area(a["segmentation"])


def test_masks_of_low_scores_are_not_written(dataset):
    filled, content = fill(dataset, min_score=0.15)
    assert [a["id"] for a in content["annotations"] if "mask_score" in a] == [2, 3]
    assert filled.left["annotations whose predicted mask has a score below 0.15"] == 2


def test_masks_that_are_there_are_replaced_and_measured_if_asked_for(dataset):
    filled, content = fill(dataset, also_replace=True)
    assert content["annotations"][0]["segmentation_source"] == "predicted"
    (measured,) = filled.comparison.measured
    assert (measured.class_name, measured.ious) == ("cat", {"model": 0.5})
    printed = summary(filled)
    assert "5 masks are filled in" in printed
    (of_a,) = [line for line in printed.splitlines() if "A: trained with masks" in line]
    assert [cell.strip() for cell in of_a.split("|")[3:5]] == ["1", "0.500"]


def test_images_are_given_in_batches_and_crowded_ones_in_parts(dataset):
    content = json.loads(dataset[0].read_text())
    content["annotations"] = [annotation(i, 1, 3, [5, 5, 10, 10]) for i in range(1, 251)]
    content["annotations"] += [annotation(300 + i, i, 3, [5, 5, 10, 10]) for i in (2, 3)]
    dataset[0].write_text(json.dumps(content))
    detector = Detector()
    filled, _ = fill(dataset, detector, batch_size=2)
    assert detector.seen == [[100, 100], [50, 1], [1]] and filled.num_filled == 252


class Stopping(Detector):
    """Is interrupted at the second batch."""

    def masks_in_boxes(self, images, objects):
        if self.seen:
            raise KeyboardInterrupt
        return super().masks_in_boxes(images, objects)


def test_started_again_it_goes_on_and_ends_with_the_same_file(dataset):
    _, expected = fill(dataset, name="expected.json")
    with pytest.raises(KeyboardInterrupt):
        fill(dataset, Stopping(), batch_size=1)
    folder = dataset[0].parent
    assert not (folder / "out.json").exists() and (folder / "out.json.unfinished").exists()
    detector = Detector()
    # How masks are written does not matter to those that are predicted.
    filled, content = fill(dataset, detector, batch_size=2)
    assert detector.seen == [[2, 1]]
    assert content == expected and filled.num_filled == 4
    assert not (folder / "out.json.unfinished").exists()


def test_what_is_done_is_not_lost_where_what_is_left_cannot_be_read(dataset):
    with pytest.raises(KeyboardInterrupt):
        fill(dataset, Stopping(), batch_size=1)
    for number in (2, 3):
        (dataset[1] / f"{number}.png").unlink()
    filled, content = fill(dataset)
    assert [a["id"] for a in content["annotations"] if "mask_score" in a] == [2]
    assert len(filled.passed_over) == 3


def test_what_another_model_has_begun_is_not_gone_on_with(dataset):
    with pytest.raises(KeyboardInterrupt):
        fill(dataset, Stopping(), batch_size=1)
    with pytest.raises(
        ValueError, match=r"unfinished belongs to a run with other inputs or options: delete"
    ):
        fill_masks(Detector(), *dataset, dataset[0].parent / "out.json", model="b")


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"size": [HEIGHT, WIDTH], "counts": "0"}, "do not add up"),
        ({"size": [2, 2], "counts": [4]}, "a mask whose size is not that of its image"),
    ],
)
def test_a_journal_that_somebody_has_changed_is_no_mask_of_garbage(dataset, mask, message):
    with pytest.raises(KeyboardInterrupt):
        fill(dataset, Stopping(), batch_size=1)
    path = dataset[0].parent / "out.json.unfinished"
    first = path.read_text().splitlines()[0]
    path.write_text(
        f"{first}\n{json.dumps({'type': 'FoundMasks', 'masks': {'2': {'rle': mask, 'score': 0.5}}})}\n"
    )
    with pytest.raises(ValueError, match=message):
        fill(dataset)
    sound = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}
    for score in (-0.1, 1.1):
        piece = {"type": "FoundMasks", "masks": {"2": {"rle": sound, "score": score}}}
        path.write_text(f"{first}\n{json.dumps(piece)}\n")
        with pytest.raises(ValueError, match=rf"has a mask of score {score}, expected 0 to 1: delete it"):
            fill(dataset)
    piece = {"type": "FoundMasks", "masks": {"2": None}}
    path.write_text(f"{first}\n{json.dumps(piece)}\n{json.dumps(piece)}\n")
    with pytest.raises(ValueError, match="has masks of annotation 2 twice: delete it"):
        fill(dataset)
    path.write_text(f"{first}\n{json.dumps({'type': 'FoundMasks', 'masks': {'77': None}})}\n")
    with pytest.raises(ValueError, match="a mask of annotation 77, which needs none"):
        fill(dataset)


def test_mistakes_are_told_before_anything_is_written(dataset, tmp_path):
    before = sorted(path.name for path in tmp_path.iterdir())
    cases = [
        ({"output": dataset[0]}, "would overwrite its input .*in.json"),
        ({"output": dataset[1]}, "images is a folder, expected a file or nothing"),
        ({"images": tmp_path / "absent"}, "absent is not a folder"),
        ({"annotations": tmp_path / "absent.json"}, "absent.json is not a file"),
    ]
    for changed, message in cases:
        given = {
            "annotations": dataset[0],
            "images": dataset[1],
            "output": tmp_path / "out.json",
            **changed,
        }
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            fill_masks(Detector(), **given, model="a")
    stranger = Detector()
    stranger.style = ClassStyle(names={1: "car"}, with_masks=frozenset())
    with pytest.raises(ValueError, match=r"knows no category .* its classes are 'car', the file's 'cat'"):
        fill(dataset, stranger)
    assert before == sorted(path.name for path in tmp_path.iterdir())


def test_images_of_another_size_are_passed_over_and_a_wrong_folder_is_an_error(dataset):
    Image.new("L", (HEIGHT, WIDTH)).save(dataset[1] / "1.png")
    filled, _ = fill(dataset)
    assert "1.png has 50 x 60 pixels, but the annotation file says 60 x 50" in filled.passed_over[0]
    for path in dataset[1].iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"none of 4 images can be read: image .*1.png does not exist"):
        fill(dataset, name="none.json")
    assert not list(dataset[0].parent.glob("none*"))


def test_coco_mini_without_half_of_its_masks(coco_mini, tmp_path):
    content = json.loads((coco_mini / "annotations" / "instances_val2017.json").read_text())
    ids = [c["id"] for c in content["categories"]]
    kept = set(ids[::2])
    for a in content["annotations"]:
        if a["category_id"] not in kept and not a["iscrowd"]:
            del a["segmentation"]
    (tmp_path / "half.json").write_text(json.dumps(content))
    detector = Detector()
    names = {c["id"]: c["name"] for c in content["categories"]}
    detector.style = ClassStyle(names=names, with_masks=frozenset(kept))
    images = coco_mini / "val2017"
    fill_masks(detector, tmp_path / "half.json", images, tmp_path / "full.json", model="a")
    filled = json.loads((tmp_path / "full.json").read_text())
    COCO(tmp_path / "full.json")
    num_filled = 0
    for old, now in zip(content["annotations"], filled["annotations"], strict=True):
        if "segmentation" in old:
            assert now == old
        elif "segmentation" in now:
            num_filled += 1
            assert {k: now[k] for k in old} == old
            image = next(i for i in content["images"] if i["id"] == now["image_id"])
            assert mask_util.decode(now["segmentation"]).shape == (image["height"], image["width"])
    assert num_filled > 50


@pytest.mark.parametrize(
    "segmentation",
    [
        [[-10, -10, -20, -10, -20, -20]],
        [[12, 12] * 3],
        {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]},
    ],
    ids=["all signs flipped", "three clicks on a point", "RLE without a pixel"],
)
def test_a_mask_without_a_pixel_is_replaced(dataset, segmentation):
    content = json.loads(dataset[0].read_text())
    content["annotations"] = [annotation(1, 1, 3, [10, 10, 10, 10], segmentation=segmentation, iscrowd=0)]
    dataset[0].write_text(json.dumps(content))
    filled, content = fill(dataset)
    assert filled.num_filled == 1 and not filled.left
    assert mask_util.area(content["annotations"][0]["segmentation"]) == 50


def square(number, image_id, category_id):
    x = 10 + number
    corners = [[x, 10, x + 10, 10, x + 10, 20, x, 20]]
    return annotation(number, image_id, category_id, [x, 10, 10, 10], segmentation=corners)


def test_masks_that_are_boxes_are_replaced_on_request(dataset):
    content = json.loads(dataset[0].read_text())
    l_shape = [[30, 30, 40, 30, 40, 33, 33, 33, 33, 40, 30, 40]]
    content["annotations"] = [
        *(square(i, 1, 3) for i in (1, 2, 3)),
        *(square(i, 2, 5) for i in (4, 5)),
        annotation(6, 2, 5, [30, 30, 10, 10], segmentation=l_shape),
    ]
    dataset[0].write_text(json.dumps(content))
    assert fill(dataset)[0].num_filled == 0
    filled, found = fill(dataset, name="replaced.json", replace_rectangles=True)
    assert filled.num_filled == 3  # of the class whose masks are all rectangles
    for old, new in zip(content["annotations"], found["annotations"], strict=True):
        assert ("mask_score" in new) == (old["category_id"] == 3)
        assert new["category_id"] == 3 or new == old


def test_both_of_two_objects_that_are_listed_twice_get_a_mask(dataset):
    content = json.loads(dataset[0].read_text())
    content["annotations"] = [annotation(i, 1, 3, [10, 10, 10, 10]) for i in (1, 2)]
    dataset[0].write_text(json.dumps(content))
    filled, content = fill(dataset)
    assert filled.num_filled == 2
