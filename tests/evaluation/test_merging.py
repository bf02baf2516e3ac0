import numpy as np
import pytest
import torch
from torchvision.ops import box_iou, nms

from maskx_d2.evaluation.merging import best_detections, merge_regions


def detection(bbox, score, category_id=1):
    return {"bbox": bbox, "score": score, "category_id": category_id}


def test_the_best_on_a_region_is_kept_and_the_others_are_counted():
    found = [
        detection([0, 0, 10, 10], 0.5, 3),
        detection([0, 0, 10, 9], 0.9, 1),  # 0.9 of the one above
        detection([0, 0, 10, 8.5], 0.6, 2),
        detection([50, 0, 10, 10], 0.7, 4),
        detection([0, 0, 10, 7], 0.4, 5),  # 0.78 of the best
    ]
    merged = merge_regions(found)
    assert [(d["category_id"], d["others"]) for d in merged] == [(1, 2), (4, 0), (5, 0)]
    assert all("others" not in d for d in found)


@pytest.mark.parametrize("min_iou", [0.5, 0.8])
def test_what_is_kept_is_class_agnostic_nms_and_nothing_is_lost(min_iou):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 30, (80, 2))
    boxes = np.concatenate([corners, rng.uniform(20, 40, (80, 2))], axis=1)
    scores = rng.uniform(size=80)
    found = [detection(b.tolist(), float(s), i) for i, (b, s) in enumerate(zip(boxes, scores, strict=True))]
    merged = merge_regions(found, min_iou=min_iou)
    xyxy = torch.from_numpy(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1))
    kept = nms(xyxy, torch.from_numpy(scores), min_iou)
    assert [d["category_id"] for d in merged] == kept.tolist()
    assert sum(1 + d["others"] for d in merged) == 80 > len(merged)
    assert (box_iou(xyxy[kept], xyxy[kept]).fill_diagonal_(0) <= min_iou).all()


def test_nothing_and_the_best():
    assert merge_regions([]) == []
    found = [detection([0, 0, 1, 1], s) for s in (0.2, 0.9, 0.5)]
    assert [d["score"] for d in best_detections(found, 2)] == [0.9, 0.5]
    assert len(best_detections(found, 9)) == 3
