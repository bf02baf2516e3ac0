#!/usr/bin/env python3
"""
Time of a training step and of inference on both backends, against torchvision's own Mask R-CNN.

All have a ResNet-50-FPN of which the first two stages are frozen, as in fine-tuning, 80 classes, random
weights, the same images and the same objects; inference keeps 100 detections an image. Each figure is a
ratio of medians, the models timed in turn in this process. Detectron2's are left out where it is not
installed.
"""

import functools
from importlib.util import find_spec

import torch
from benchmark_tools import (
    PEER,
    batch_arguments,
    detectron2_calls,
    detectron2_models,
    medians,
    same_detector,
    standing_still,
    tame,
    targets,
    torchvision_calls,
    torchvision_models,
    training_step,
)


def main() -> None:
    args = batch_arguments(__doc__, side=320)
    images = list(torch.rand(args.images, 3, args.side, args.side))
    objects = targets(args.images, args.side, args.side, args.objects)
    on_torchvision = same_detector(torchvision_models(args.side, args.side))
    models = {
        name: (model, torchvision_calls(model, images, objects)) for name, model in on_torchvision.items()
    }
    if find_spec("detectron2") is not None:
        for name, model in same_detector(detectron2_models(args.side, args.side)).items():
            models[name] = model, detectron2_calls(model, images, objects)

    steps, inferences = {}, {}
    for name, (model, (losses, detections)) in models.items():
        tame(model)
        steps[name] = functools.partial(training_step, losses, standing_still(model))
        inferences[name] = torch.no_grad()(detections)
    for title, training, functions in (("training step", True, steps), ("inference", False, inferences)):
        for model, _ in models.values():
            model.train(training)
        times = medians(functions, args.repeats, warm_up=True)
        for name, median in times.items():
            print(f"{title:13}  {name:38} {median:6.2f} s, {median / times[PEER]:5.2f} x {PEER}")


if __name__ == "__main__":
    main()
