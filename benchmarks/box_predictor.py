#!/usr/bin/env python3
"""
Time of the box predictor's inference: boxes for the detected pairs of proposal and class, against
Detectron2's boxes of all classes.

From the features of the proposals to the detections, with NMS. Random weights, scaled so that scores are
as peaked as those of a trained detector. Each line is a ratio of medians, the two timed in turn in this
process.
"""

import argparse
import functools

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from timing import medians

from maskx_d2.hosts.detectron2.box_predictor import GatheredFastRCNNOutputLayers


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--proposals", type=int, default=1000)
    parser.add_argument("--classes", type=int, nargs="+", default=[80, 3001])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.manual_seed(0)
    corner = 800 * torch.rand(args.proposals, 2)
    proposals = Instances((800, 1333))
    boxes = torch.cat([corner, corner + 10 + 300 * torch.rand(args.proposals, 2)], 1)
    proposals.proposal_boxes = Boxes(boxes.to(device))
    features = torch.randn(args.proposals, 1024, device=device)
    print(f"{args.proposals} proposals on {device}, torch {torch.__version__}")
    for num_classes in args.classes:
        predictors = [
            kind(
                ShapeSpec(channels=1024),
                box2box_transform=Box2BoxTransform(weights=(10, 10, 5, 5)),
                num_classes=num_classes,
                test_score_thresh=0.05,
                test_topk_per_image=100,
            ).to(device).eval()
            for kind in (FastRCNNOutputLayers, GatheredFastRCNNOutputLayers)
        ]  # fmt: skip
        torch.nn.init.normal_(predictors[0].cls_score.weight, std=0.15)
        predictors[1].load_state_dict(predictors[0].state_dict())
        probabilities = predictors[0].predict_probs(predictors[0](features), [proposals])[0][:, :-1]
        pairs = int((probabilities > 0.05).sum())

        def detect(predictor):
            return predictor.inference(predictor(features), [proposals])[0][0]

        expected, found = (detect(predictor) for predictor in predictors)
        assert torch.equal(found.pred_classes, expected.pred_classes)
        torch.testing.assert_close(
            found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=1e-4, atol=1e-2
        )
        functions = (functools.partial(detect, predictor) for predictor in predictors)
        times = medians(dict(zip(("stock", "ours"), functions, strict=True)), args.repeats, device=device)
        stock, ours = times.values()
        print(
            f"K = {num_classes:5}: {pairs} pairs above the threshold; all classes {stock * 1e3:8.1f} ms, "
            f"gathered {ours * 1e3:8.1f} ms, ratio {stock / ours:5.1f}; same detections"
        )


if __name__ == "__main__":
    main()
