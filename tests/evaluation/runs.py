"""Evaluated runs on the synthetic ground truth, as a backend leaves them."""

import json

import numpy as np
from PIL import Image

from maskx_d2.data.pycocotools_coco import read_coco
from maskx_d2.evaluation.average_precision import class_precisions
from maskx_d2.evaluation.run_files import (
    DETECTIONS_FILE,
    EVALUATION_FOLDER,
    METRICS_FILE,
    evaluation_of,
    write_evaluation,
)

from . import synthetic

GROUP_A = (1, 4)


def dataset(folder, content=None):
    """The annotation file, with its images beside it."""
    content = synthetic.ground_truth() if content is None else content
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for image in content["images"]:
        pixels = rng.integers(0, 256, (160, 160, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / image["file_name"])
    (folder / "truth.json").write_text(json.dumps(content))
    return folder / "truth.json"


def run(folder, truth, *, seed=1, with_masks=GROUP_A, tasks=("bbox", "segm")):
    """A run whose detections are those of ``synthetic.detections`` with this seed."""
    coco = read_coco(truth)
    results = synthetic.detections(json.loads(truth.read_text()), seed)
    evaluation = evaluation_of(
        {task: class_precisions(coco, results, task) for task in tasks},
        annotations=truth,
        images=str(truth.parent / "images"),
        class_names=[f"class {i}" for i in synthetic.CATEGORY_IDS],
        category_ids=synthetic.CATEGORY_IDS,
        with_masks=with_masks,
    )
    (folder / EVALUATION_FOLDER).mkdir(parents=True)
    write_evaluation(folder / EVALUATION_FOLDER, evaluation)
    (folder / EVALUATION_FOLDER / DETECTIONS_FILE).write_text(json.dumps(results))
    lines = [{"iteration": 20 * i, "total_loss": 5 / i + seed, "loss_mask": 1 / i} for i in range(1, 6)]
    (folder / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
