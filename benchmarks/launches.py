#!/usr/bin/env python3
"""
What a GPU is asked to do, counted on a CPU: operations that launch kernels, and waits for their results, of
training steps and of inference of both backends and of their parts, against the stock models.

Small models on small images: the numbers do not depend on the sizes. An operation on a GPU launches one
kernel or a few, so the ratios, not the counts, are those of a GPU. Copies to the host are counted as waits.
"""

import argparse
import functools
from collections.abc import Callable, Mapping
from importlib.util import find_spec

import torch
from benchmark_tools import (
    detectron2_calls,
    detectron2_models,
    same_detector,
    standing_still,
    tame,
    targets,
    torchvision_calls,
    torchvision_models,
    training_step,
)
from tabulate import tabulate
from waits import Waits

_WITHOUT_KERNEL = ("detach", "empty", "empty_like", "empty_strided", "new_empty", "lift_fresh")


class Launches(Waits):
    """Also counts operations that launch kernels."""

    launches = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        has_kernel = not func.is_view and func.overloadpacket.__name__ not in _WITHOUT_KERNEL
        self.launches += has_kernel
        return super().__torch_dispatch__(func, types, args, kwargs)


def rows(title: str, functions: Mapping[str, Callable]) -> list[list]:
    """The counts of each function, and their ratios to those of the first."""
    found, first = [], None
    for name, function in functions.items():
        torch.manual_seed(0)
        function()  # what is computed once
        torch.manual_seed(0)
        with Launches() as counter:
            function()
        counts = counter.launches, counter.total
        first = first or counts
        ratios = [f"{count / max(peer, 1):.2f}" for count, peer in zip(counts, first, strict=True)]
        found.append([title, name, counts[0], ratios[0], counts[1], ratios[1]])
    return found


def whole_models(side: int) -> list[list]:
    """Training steps and inference of both backends."""
    images, objects = list(torch.rand(2, 3, side, side)), targets(2, side, side, 4)
    groups = [(torchvision_models(side, side, depth=18, mlp_reduced_channels=4), torchvision_calls)]
    if find_spec("detectron2") is not None:
        from gpu import SMALL

        groups.append((detectron2_models(side, side, SMALL), detectron2_calls))
    found = []
    for models, calls in groups:
        steps, inferences = {}, {}
        for name, model in same_detector(models).items():
            tame(model)
            losses, detections = calls(model, images, objects)
            steps[name] = functools.partial(training_step, losses, standing_still(model))
            inferences[name] = torch.no_grad()(detections)
        for title, functions in (("training step", steps), ("inference", inferences)):
            for model in models.values():
                model.train(title == "training step")
            found += rows(title, functions)
    return found


def parts() -> list[list]:
    """The mask predictor, and on Detectron2 the mask head and the box predictor."""
    from mask_predictor import both_ways

    found, device = [], torch.device("cpu")
    gathered, all_classes = both_ways(80, torch.randn(4, 256, 28, 28))
    found += rows("mask predictor, inference", {"all classes": all_classes, "gathered": gathered})
    if find_spec("detectron2") is None:
        return found
    from box_predictor import both_predictors, features_of_a_picture, proposals_of_a_picture
    from mask_head import detected, infer, maskx_head, matched, stock_head, train

    heads = {
        "Detectron2": stock_head(80),
        "Mask^X without MLP branch": maskx_head(80, mlp_layers=0, device=device),
    }
    features = torch.randn(4, 256, 14, 14)
    for title, run, instances_of in (
        ("mask head, inference", infer, detected),
        ("mask head, training", train, matched),
    ):
        functions = {}
        for name, head in heads.items():
            head.train("training" in title)
            given = (features, instances_of(4, 80, device))
            if "training" in title:
                given = (standing_still(head), *given)
            functions[name] = functools.partial(run, head, *given)
        found += rows(title, functions)
    stock, ours = both_predictors(80, device)
    proposals = proposals_of_a_picture(100, device)
    features = features_of_a_picture(stock.cls_score.weight.detach(), 100, num_present=20, background=0.5)
    ways = {}
    for name, predictor in (("Detectron2", stock), ("GATHERED_REGRESSION", ours)):
        ways[name] = torch.no_grad()(
            lambda predictor=predictor: predictor.inference(predictor(features), [proposals])
        )
    return found + rows("box predictor, inference", ways)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--side", type=int, default=128, help="of the images, in pixels")
    args = parser.parse_args()
    headers = ["", "model", "operations", "ratio", "waits", "ratio"]
    print(tabulate(whole_models(args.side) + parts(), headers, "github"))


if __name__ == "__main__":
    main()
