"""Properties of both backends: files of the same meaning, and what a run says of its training data."""

import copy
import json
import random
from collections import Counter
from importlib.util import find_spec

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from maskx_d2.backends.torchvision.data_module import CocoDataModule
from maskx_d2.backends.torchvision.dataset import PartiallySupervisedCoco, read_records
from maskx_d2.data.class_names import match_classes
from maskx_d2.data.coco_file import read_coco_file
from maskx_d2.data.pycocotools_coco import class_names, read_coco
from maskx_d2.demo import shapes
from maskx_d2.evaluation.average_precision import average_precision, class_precisions

from .backends.torchvision.tiny import masks_of_boxes

HAS_DETECTRON2 = find_spec("detectron2") is not None
BACKENDS = ["torchvision", *(["detectron2"] if HAS_DETECTRON2 else [])]


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    """The folder of images, and the content of a file of twelve images, with all masks."""
    dataset = shapes.generate(tmp_path_factory.mktemp("shapes"), num_train=12, num_test=1, seed=0)
    return dataset.train_images, json.loads(dataset.all_masks_json.read_text())


def test_detectron2_is_compared_too():
    if not HAS_DETECTRON2:
        pytest.skip("needs Detectron2, which is not installed")
    assert BACKENDS == ["torchvision", "detectron2"]


# ---- The same meaning, written in another way ----


def as_rle(segmentation, image, *, compressed):
    if isinstance(segmentation, list):
        rle = mask_util.merge(mask_util.frPyObjects(segmentation, image["height"], image["width"]))
    else:
        rle = segmentation
        if isinstance(rle["counts"], list):
            rle = mask_util.frPyObjects(rle, image["height"], image["width"])
    if compressed:
        counts = rle["counts"]
        return {"size": list(rle["size"]), "counts": counts if isinstance(counts, str) else counts.decode()}
    pixels = mask_util.decode(rle).ravel(order="F")
    changes = np.flatnonzero(np.diff(pixels)) + 1
    runs = np.diff([0, *changes, len(pixels)]).tolist()
    return {"size": list(rle["size"]), "counts": [0, *runs] if pixels[0] else runs}


def rewritten(content, rng):
    """The same with other ids, in another order, in other forms, and with more keys."""
    content = copy.deepcopy(content)
    images = {image["id"]: image for image in content["images"]}
    for annotation in content["annotations"]:
        form = rng.choice(["as it is", "compressed", "uncompressed"])
        if form != "as it is":
            annotation["segmentation"] = as_rle(
                annotation["segmentation"],
                images[annotation["image_id"]],
                compressed=form == "compressed",
            )
        if rng.random() < 0.5:
            annotation["bbox"] = [float(value) for value in annotation["bbox"]]
        for key in ("iscrowd", "area"):
            value = rng.choice(["as it is", "absent", None])
            if value == "absent":
                del annotation[key]
            elif value != "as it is":
                annotation[key] = value
    references = {"images": "image_id", "categories": "category_id", "annotations": None}
    for part, reference in references.items():
        records = content[part]
        old = [record["id"] for record in records]
        new = rng.sample(old, len(old))
        shift, factor = rng.choice([(0, 1), (-1, 1), (100, 1), (7, -3)])
        of_old = {a: factor * b + shift for a, b in zip(old, new, strict=True)}
        for record in records:
            record["id"] = of_old[record["id"]]
        for annotation in content["annotations"] if reference else ():
            annotation[reference] = of_old[annotation[reference]]
        if rng.random() < 0.3:  # a table with gaps makes floats of a column
            for record in records:
                record["id"] = float(record["id"])
        more = [{**record, "more": {"of": [part]}} for record in rng.sample(records, len(records))]
        content[part] = [dict(rng.sample(list(record.items()), len(record))) for record in more]
    content = {**content, "info": {}, "licenses": []}
    return dict(rng.sample(list(content.items()), len(content)))


def targets_of_torchvision(path, images):
    file = read_coco_file(path)
    names, found = file.class_names, {}
    data = PartiallySupervisedCoco(read_records(file), images)
    file_name = {image.id: image.file_name for image in file.images}
    for _, target in data:
        columns = target["boxes"], target["labels"], masks_of_boxes(target), target["has_mask"]
        found[file_name[int(target["image_id"])]] = Counter(
            (names[int(label) - 1], tuple(box.tolist()), mask.numpy().tobytes(), bool(has_mask))
            for box, label, mask, has_mask in zip(*columns, strict=True)
        )
    return found


def targets_of_detectron2(path, images):
    from detectron2.data import MetadataCatalog

    from maskx_d2.backends.detectron2.class_split import load_dataset
    from maskx_d2.backends.detectron2.dataset_mapper import PartiallySupervisedMapper

    with registered(path, images) as name:
        dicts, names = load_dataset(name), MetadataCatalog.get(name).thing_classes
        mapper = PartiallySupervisedMapper(
            is_train=True, augmentations=[], image_format="RGB", use_instance_mask=True,
            instance_mask_format="bitmask",
        )  # fmt: skip
        found = {}
        for record in dicts:
            instances = mapper(copy.deepcopy(record))["instances"]
            columns = (
                instances.gt_boxes.tensor,
                instances.gt_classes,
                instances.gt_masks.tensor,
                instances.gt_has_mask,
            )
            found[record["file_name"].rpartition("/")[2]] = Counter(
                (
                    names[int(label)],
                    tuple(box.tolist()),
                    mask.byte().numpy().tobytes(),
                    bool(has_mask),
                )
                for box, label, mask, has_mask in zip(*columns, strict=True)
            )
    return found


class registered:
    """A dataset of Detectron2 for as long as the context lasts."""

    def __init__(self, path, images):
        self.entry = ["rewritten", str(path), str(images)]

    def __enter__(self):
        from maskx_d2.backends.detectron2.datasets import register_datasets

        from .backends.detectron2 import tiny

        tiny.forget("rewritten")
        register_datasets(tiny.model_config("DATASETS.MASKX_REGISTER", [self.entry]))
        return "rewritten"

    def __exit__(self, *error):
        from .backends.detectron2 import tiny

        tiny.forget("rewritten")


def detections_of(content):
    """Of each object one of its class, of every third one also one of another, by names."""
    images = {image["id"]: image for image in content["images"]}
    names = [category["name"] for category in sorted(content["categories"], key=lambda c: c["id"])]
    ids = sorted(category["id"] for category in content["categories"])
    found = []
    for number, annotation in enumerate(content["annotations"]):
        image = images[annotation["image_id"]]
        index = ids.index(annotation["category_id"])
        x, y, width, height = annotation["bbox"]
        for label in [index, (index + 1) % len(ids)] if number % 3 == 0 else [index]:
            found.append(
                {
                    "file_name": image["file_name"],
                    "name": names[label],
                    "bbox": [x + number % 4, y, width, height],
                    "score": 1 / (2 + number),
                    "segmentation": as_rle(annotation["segmentation"], image, compressed=True),
                }
            )
    return names, found


def ap_of_torchvision(path, images, names, detections):
    module = CocoDataModule(path, images, path, images)
    # A model whose classes are in the order of ``names``.
    module.__dict__["_categories"] = [{"name": name} for name in names]
    truth = module.val_coco
    ids = {image["file_name"]: image["id"] for image in truth.dataset["images"]}
    results = [
        {
            **{key: d[key] for key in ("bbox", "score", "segmentation")},
            "image_id": ids[d["file_name"]],
            "category_id": module.val_category_ids[names.index(d["name"])],
        }
        for d in detections
    ]
    order = match_classes(names, class_names(truth), what="the file")
    found = {}
    for task in ("bbox", "segm"):
        by_class = average_precision(
            class_precisions(truth, results, task), {n: [i] for n, i in zip(names, order, strict=True)}
        )
        found |= {(task, name): values["AP"] for name, values in by_class.items()}
    return found


def ap_of_detectron2(path, images, names, detections):
    import torch
    from detectron2.structures import Boxes, Instances

    from maskx_d2.backends.detectron2.evaluator import PartiallySupervisedEvaluator

    with registered(path, images) as name:
        evaluator = PartiallySupervisedEvaluator(
            name, classes_with_masks=range(len(names)), model_classes=names, tasks=("bbox", "segm")
        )
        evaluator.reset()
        for image in evaluator._coco_api.dataset["images"]:
            of_image = [d for d in detections if d["file_name"] == image["file_name"]]
            boxes = torch.tensor([d["bbox"] for d in of_image], dtype=torch.float32).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            instances = Instances(
                (image["height"], image["width"]),
                pred_boxes=Boxes(boxes),
                scores=torch.tensor([d["score"] for d in of_image], dtype=torch.float64),
                pred_classes=torch.tensor([names.index(d["name"]) for d in of_image], dtype=torch.int64),
                pred_masks=torch.from_numpy(
                    np.stack([mask_util.decode(d["segmentation"]) for d in of_image]).astype(bool)
                ),
            )
            evaluator.process([{"image_id": image["id"]}], [{"instances": instances}])
        results = evaluator.evaluate()
    return {(task, name): results[task][f"AP-{name}"] for task in ("bbox", "segm") for name in names}


@pytest.mark.parametrize("backend", BACKENDS)
def test_files_of_the_same_meaning_give_the_same_targets_and_the_same_ap(twelve, tmp_path_factory, backend):
    images, content = twelve
    folder = tmp_path_factory.mktemp("rewritten")
    targets = {"torchvision": targets_of_torchvision, "detectron2": targets_of_detectron2}[backend]
    ap = {"torchvision": ap_of_torchvision, "detectron2": ap_of_detectron2}[backend]
    path = folder / "truth.json"
    path.write_text(json.dumps(content))
    names, detections = detections_of(content)
    expected_targets = targets(path, images)
    expected_ap = ap(path, images, names, detections)
    assert sum(map(Counter.total, expected_targets.values())) == len(content["annotations"])
    assert 20 < np.nanmean(list(expected_ap.values())) < 99

    @settings(max_examples=12)
    @given(st.integers(0, 10**6))
    def check(seed):
        path.write_text(json.dumps(rewritten(content, random.Random(seed))))
        assert targets(path, images) == expected_targets
        found = ap(path, images, names, detections)
        assert found.keys() == expected_ap.keys()
        np.testing.assert_allclose(list(found.values()), list(expected_ap.values()), atol=1e-9)

    check()


# ---- What a run says it trains on ----


def flipped(annotation):
    annotation["segmentation"] = [[-1.0, -2.0, -9.0, -2.0, -9.0, -8.0]]


CHANGES = {
    "none": lambda a: None,
    "a box only": lambda a: a.pop("segmentation"),
    "a mask without a pixel": flipped,
    "three clicks on a point": lambda a: a.update(segmentation=[[5, 5, 5, 5, 5, 5]]),
    "a crowd region": lambda a: a.update(iscrowd=1),
    "to be ignored": lambda a: a.update(ignore=1),
    "a box without area": lambda a: a.update(bbox=[*a["bbox"][:2], 0, a["bbox"][3]]),
    "a box outside": lambda a: a.update(bbox=[500, 5, 20, 20], segmentation=[]),
    "a box of half a pixel": lambda a: a.update(bbox=[*a["bbox"][:2], 0.5, 0.5], segmentation=[]),
    "a negative area": lambda a: a.update(area=-1),
}


def said_by_torchvision(path, images):
    module = CocoDataModule(path, images, path, images)
    dataset, said = module._training
    found = [target for _, target in dataset]
    return said, [
        (len(t["labels"]), int(t["has_mask"].sum()), masks_of_boxes(t).flatten(1).any(1)) for t in found
    ]


def said_by_detectron2(path, images):
    from maskx_d2.backends.detectron2.data_loader import build_train_loader

    from .backends.detectron2 import tiny

    with registered(path, images) as name:
        cfg = tiny.model_config(
            *("DATASETS.MASKX_REGISTER", [[name, str(path), str(images)]], "DATASETS.TRAIN", (name,)),
            *("MODEL.ROI_HEADS.NUM_CLASSES", 32, "SEED", 0, "SOLVER.IMS_PER_BATCH", 1),
        )
        loader = build_train_loader(cfg)
        found, batches = {}, iter(loader)
        while len(found) < loader.training_data.num_images:
            (sample,) = next(batches)
            found[sample["image_id"]] = sample["instances"]
    return loader.training_data, [
        (len(i), int(i.gt_has_mask.sum()), i.gt_masks.tensor.flatten(1).any(1)) for i in found.values()
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_run_says_it_trains_on_is_what_its_loader_gives_the_model(twelve, tmp_path_factory, backend):
    images, content = twelve
    path = tmp_path_factory.mktemp("changed") / "truth.json"
    said_by = {"torchvision": said_by_torchvision, "detectron2": said_by_detectron2}[backend]

    @settings(max_examples=12)
    @given(st.lists(st.sampled_from(list(CHANGES)), min_size=8, max_size=12), st.integers(0, 5))
    def check(names, num_twice):
        changed = copy.deepcopy(content)
        for annotation, name in zip(changed["annotations"], names, strict=False):
            CHANGES[name](annotation)
        twice = changed["annotations"][:num_twice]
        changed["annotations"] += [{**a, "id": 1000 + a["id"]} for a in twice]
        path.write_text(json.dumps(changed))
        said, found = said_by(path, images)
        assert said.num_images == len(found)
        assert sum(said.num_objects) == sum(objects for objects, _, _ in found)
        assert said.num_masks == sum(masks for _, masks, _ in found)
        assert said.num_masks == sum(int(has_pixels.sum()) for _, _, has_pixels in found)
        counts = Counter(names)
        gone = counts["a box without area"] + counts["a box outside"]
        crowds = counts["a crowd region"] + counts["to be ignored"]
        assert sum(said.num_objects) == len(content["annotations"]) - gone - crowds
        assert said.left_out.get("boxes without area in their image", 0) >= gone

    check()


# ---- Detections of a file's own objects ----


def perfect(coco: COCO):
    return [
        {
            **{key: a[key] for key in ("image_id", "category_id", "bbox")},
            "score": 1.0,
            "segmentation": coco.annToRLE(a),
        }
        for a in coco.dataset["annotations"]
    ]


@pytest.mark.parametrize("name", ["a negative area", "to be ignored", "a mask without a pixel"])
def test_perfect_detections_have_an_ap_of_100(twelve, tmp_path, name):
    _, content = twelve
    changed = copy.deepcopy(content)
    for annotation in changed["annotations"][::4]:
        CHANGES[name](annotation)
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(changed))
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    for task in ("bbox", "segm"):
        precision = class_precisions(read_coco(path), perfect(coco), task)
        ap = average_precision(precision, {"all": range(32)})["all"]
        assert ap["AP"] == pytest.approx(100)
