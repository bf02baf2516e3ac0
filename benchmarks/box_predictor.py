#!/usr/bin/env python3
"""
Time of the box predictor's inference: boxes for the detected pairs of proposal and class, against
Detectron2's boxes of all classes.

From the features of the proposals to the detections, with NMS. Random weights, and features as those of a
picture in which a trained detector finds some of its classes. Each line is a ratio of medians, the two
timed in turn in this process.
"""

import functools
import math

import torch
from benchmark_tools import argument_parser, medians, setting
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances

from maskx_d2.backends.detectron2.box_predictor import GatheredFastRCNNOutputLayers


def features_of_a_picture(
    weight: torch.Tensor, num_proposals: int, *, num_present: int, background: float
) -> torch.Tensor:
    """
    Features of proposals as of a trained model on a picture with some of its classes: a proposal is
    background, or of one of these and a little of another.

    Args:
        weight: (K + 1, F) of the class scores.
        num_proposals: how many.
        num_present: how many classes the picture has.
        background: share of proposals that are background.
    """
    num_classes = len(weight) - 1
    present = torch.randperm(num_classes)[:num_present]
    towards = weight / weight.square().sum(1, keepdim=True)  # adds 1 to the logit of its class
    first, second = (towards[present[torch.randint(num_present, (num_proposals,))]] for _ in range(2))
    logit = math.log(num_classes) + torch.empty(2, num_proposals, 1).uniform_(-2, 3)
    features = logit[0] * first + (logit[1] - 2) * second
    is_background = torch.rand(num_proposals) < background
    features[is_background] = (math.log(num_classes) + 3) * towards[num_classes]
    return features + 0.1 * torch.randn_like(features)


def proposals_of_a_picture(number: int, device: torch.device) -> Instances:
    corner = 800 * torch.rand(number, 2)
    boxes = torch.cat([corner, corner + 10 + 300 * torch.rand(number, 2)], 1)
    proposals = Instances((800, 1333))
    proposals.proposal_boxes = Boxes(boxes.to(device))
    return proposals


def both_predictors(num_classes: int, device: torch.device) -> list[FastRCNNOutputLayers]:
    """Detectron2's, and with the same weights the one that gathers."""
    stock, ours = (
        kind(
            ShapeSpec(channels=1024),
            box2box_transform=Box2BoxTransform(weights=(10, 10, 5, 5)),
            num_classes=num_classes,
            test_score_thresh=0.05,
            test_topk_per_image=100,
        ).eval()
        for kind in (FastRCNNOutputLayers, GatheredFastRCNNOutputLayers)
    )
    torch.nn.init.normal_(stock.cls_score.weight, std=0.15)
    ours.load_state_dict(stock.state_dict())
    return [stock.to(device), ours.to(device)]


@torch.no_grad()
def main() -> None:
    parser = argument_parser(__doc__, repeats=9)
    parser.add_argument("--proposals", type=int, default=1000)
    parser.add_argument("--classes", type=int, nargs="+", default=[80, 3001])
    parser.add_argument("--present", type=int, default=60, help="classes that the picture has")
    parser.add_argument(
        "--random-scores", action="store_true", help="of hundreds or thousands of classes, scattered"
    )
    args = parser.parse_args()
    torch.manual_seed(0)
    proposals = proposals_of_a_picture(args.proposals, args.device)
    print(f"{args.proposals} proposals {setting(args.device)}")
    for num_classes in args.classes:
        stock, ours = both_predictors(num_classes, args.device)
        if args.random_scores:
            features = torch.randn(args.proposals, 1024)
        else:
            features = features_of_a_picture(
                stock.cls_score.weight.cpu(), args.proposals, num_present=args.present, background=0.5
            )
        features = features.to(args.device)
        predictors = {"stock": stock, "ours": ours}

        def detect(predictor, features=features):
            return predictor.inference(predictor(features), [proposals])[0][0]

        expected, found = (detect(predictor) for predictor in predictors.values())
        assert torch.equal(found.pred_classes, expected.pred_classes)
        torch.testing.assert_close(
            found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=1e-4, atol=1e-2
        )
        probabilities = stock.predict_probs(stock(features), [proposals])[0][:, :-1]
        above = probabilities > 0.05
        functions = {name: functools.partial(detect, p) for name, p in predictors.items()}
        times = medians(functions, args.repeats, device=args.device, warm_up=True)
        print(
            f"K = {num_classes:5}: {int(above.sum())} pairs of {int(above.any(0).sum())} classes above the "
            f"threshold; all classes {times['stock'] * 1e3:7.1f} ms, "
            f"gathered {times['ours'] * 1e3:7.1f} ms, "
            f"ratio {times['stock'] / times['ours']:5.1f}; same detections"
        )


if __name__ == "__main__":
    main()
