import json

import pytest
import torch
from detectron2.evaluation import coco_evaluation
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm

from maskx_d2.backends.detectron2 import Trainer, data_loader, datasets
from maskx_d2.backends.detectron2.class_split import class_names
from maskx_d2.backends.detectron2.once_per_node import load_once_per_node, once_per_node
from maskx_d2.data.records import Records

from ... import ranks
from . import tiny


def test_a_process_alone_calls_and_gets_what_is_there():
    dicts = [{"a": 1}]
    found, more = load_once_per_node(lambda: (dicts, 7), datasets=[])
    assert found is dicts and more == 7
    with pytest.raises(KeyError):
        once_per_node(lambda: {}["absent"], datasets=[])


class _TwoArguments(Exception):
    """That cannot be sent to another process."""

    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


def _fail(error):
    raise error


def _evaluated(cfg, dataset):
    """Results for boxes that are all right, and how often pycocotools has read annotations."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.MASK_ON = False
    num_indexed = 0

    class CountedCOCO(coco_evaluation.COCO):
        def __init__(self, *args):
            nonlocal num_indexed
            num_indexed += 1
            super().__init__(*args)

    coco_evaluation.COCO = CountedCOCO
    content = json.loads(dataset.test_json.read_text())
    category_ids = sorted(category["id"] for category in content["categories"])
    evaluator = Trainer.build_evaluator(cfg, "shapes_test")
    evaluator.reset()
    for (image,) in data_loader.build_test_loader(cfg, "shapes_test"):
        objects = [a for a in content["annotations"] if a["image_id"] == image["image_id"]]
        boxes = torch.tensor([a["bbox"] for a in objects], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        found = Instances((image["height"], image["width"]))
        found.pred_boxes, found.scores = Boxes(boxes), torch.full((len(boxes),), 0.9)
        found.pred_classes = torch.tensor([category_ids.index(a["category_id"]) for a in objects])
        evaluator.process([image], [{"instances": found}])
    return evaluator.evaluate(), num_indexed


def _worker(rank, dataset, folder):
    ranks.join(rank, folder)
    comm.create_local_process_group(2)
    files_read = []
    read = datasets.read_coco_file
    datasets.read_coco_file = lambda path, **options: files_read.append(path.name) or read(path, **options)
    cfg = tiny.data_config(dataset, folder, "DATALOADER.NUM_WORKERS", 0, "MODEL.MASK_ON", True)
    shared = []
    read_records = Records.read
    Records.read = lambda path: shared.append(path) or read_records(path)
    batches = iter(data_loader.build_train_loader(cfg))
    trained_on = [image["image_id"] for _ in range(8) for image in next(batches)]
    tested_on = [batch[0]["image_id"] for batch in data_loader.build_test_loader(cfg, "shapes_test")]
    has_mask = [bool(i["instances"].gt_has_mask.any()) for _ in range(4) for i in next(batches)]
    comm.synchronize()  # Whoever reads last may delete last.
    evaluated, num_indexed = _evaluated(cfg, dataset)
    errors = []
    for function in (lambda: _fail(ValueError("no such")), lambda: _fail(_TwoArguments(1, 2))):
        try:
            once_per_node(function, datasets=[])
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
    result = {
        "read": files_read,
        "classes": class_names("shapes_train"),
        "trained_on": trained_on,
        "tested_on": tested_on,
        "has_mask": has_mask,
        "errors": errors,
        "evaluated": evaluated,
        "num_indexed": num_indexed,
        "shared": list(map(str, shared)),
        "left": [str(path) for path in shared if path.exists()],
    }
    (folder / f"{rank}.json").write_text(json.dumps(result))
    ranks.leave()


def test_of_two_processes_one_reads_and_both_have_it(shapes_dataset, tmp_path):
    ranks.run(_worker, shapes_dataset, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["read"] == ["train.json", "test.json", "test.json"] and second["read"] == []
    assert first["classes"] == second["classes"] and len(first["classes"]) == 32
    # Each its own images, of the same data.
    assert not set(first["tested_on"]) & set(second["tested_on"])
    assert len(first["tested_on"]) + len(second["tested_on"]) == 8
    assert len(first["trained_on"]) == 8 and set(first["trained_on"]) != set(second["trained_on"])
    # One reads the annotations for the evaluation, of what both have predicted.
    assert first["evaluated"]["bbox"]["AP"] == pytest.approx(100) and second["evaluated"] == {}
    assert (first["num_indexed"], second["num_indexed"]) == (1, 0)
    assert any(first["has_mask"]) and any(second["has_mask"])
    assert first["errors"] == ["ValueError: no such", "_TwoArguments: 1 and 2"]
    assert second["errors"] == ["ValueError: no such", "RuntimeError: _TwoArguments: 1 and 2"]
    assert first["shared"] == second["shared"] and len(first["shared"]) == 3
    assert first["left"] == second["left"] == []
