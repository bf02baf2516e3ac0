#!/usr/bin/env python3
"""
Time of a training step and of inference on both backends, against torchvision's own Mask R-CNN.

All have a ResNet-50-FPN of which the first two stages are frozen, as in fine-tuning, 80 classes, random
weights, the same images and the same objects; inference keeps 100 detections an image. Each figure is a
ratio of medians, the models timed in turn in this process. Detectron2's are left out where it is not
installed.
"""

import functools
from collections.abc import Callable
from importlib.util import find_spec

import torch
from timing import batch_arguments, medians
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from maskx_d2.backends.torchvision import maskx_rcnn_resnet_fpn
from maskx_d2.runtime.configs import config_file

NUM_CLASSES = 80
PEER = "torchvision: Mask R-CNN"


def targets(num_images: int, height: int, width: int, objects: int) -> list[dict]:
    """Boxes of a quarter to a half of the image's sides, with a full mask each."""
    generator = torch.Generator().manual_seed(0)
    sides = torch.tensor([width, height])
    result = []
    for _ in range(num_images):
        size = sides * (0.25 + 0.25 * torch.rand(objects, 2, generator=generator))
        corner = (sides - size) * torch.rand(objects, 2, generator=generator)
        boxes = torch.cat([corner, corner + size], dim=1)
        masks = torch.zeros(objects, height, width, dtype=torch.uint8)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = 1
        labels = torch.randint(1, NUM_CLASSES + 1, (objects,), generator=generator)
        result.append({"boxes": boxes, "labels": labels, "masks": masks})
    return result


def torchvision_models(
    height: int, width: int, *, depth: int = 50, **mask_branch
) -> dict[str, torch.nn.Module]:
    """``mask_branch``: options of Mask^X's."""
    options = {"min_size": height, "max_size": max(height, width), "box_score_thresh": 0.0}
    backbone = resnet_fpn_backbone(
        backbone_name=f"resnet{depth}", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    models = {PEER: MaskRCNN(backbone, NUM_CLASSES + 1, **options)}
    for name, more in (("Mask^X", {}), ("Mask^X without MLP branch", {"mlp_layers": 0})):
        model = maskx_rcnn_resnet_fpn(
            num_classes=NUM_CLASSES + 1, depth=depth, norm="FrozenBN", **options, **{**mask_branch, **more}
        )
        for part in (model.backbone.body.conv1, model.backbone.body.layer1):
            part.requires_grad_(False)
        models[f"torchvision: {name}"] = model
    return models


def torchvision_calls(model, images: list, objects: list[dict]) -> tuple[Callable, Callable]:
    return lambda: model(images, objects), lambda: model(images)


def detectron2_models(height: int, width: int, overrides: list | None = None) -> dict[str, torch.nn.Module]:
    from detectron2.modeling import build_model

    from maskx_d2.backends.detectron2.config import load_config

    settings = [
        *("INPUT.MIN_SIZE_TEST", height, "INPUT.MAX_SIZE_TEST", max(height, width), "MODEL.WEIGHTS", ""),
        *("MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
        *("DATASETS.CLASSES_WITH_MASKS", "all"),
    ]
    maskx = str(config_file("maskx_R_50_FPN_1x.yaml"))
    configs = {
        "Mask R-CNN": (str(config_file("mask_rcnn_R_50_FPN_1x.yaml")), []),
        "Mask^X": (maskx, []),
        "Mask^X without MLP branch": (maskx, ["MODEL.ROI_MASK_HEAD.MLP_BRANCH.NUM_LAYERS", 0]),
    }
    return {
        f"Detectron2: {name}": build_model(load_config(config, [*settings, *(overrides or []), *more]))
        for name, (config, more) in configs.items()
    }


def detectron2_calls(model, images: list, objects: list[dict]) -> tuple[Callable, Callable]:
    from detectron2.structures import BitMasks, Boxes, Instances
    from detectron2.utils.events import EventStorage

    inputs = []
    for image, of_image in zip(images, objects, strict=True):
        height, width = image.shape[-2:]
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(of_image["boxes"])
        instances.gt_classes = of_image["labels"] - 1
        instances.gt_masks = BitMasks(of_image["masks"].bool())
        if "has_mask" in of_image:
            instances.gt_has_mask = of_image["has_mask"]
        inputs.append({"image": image * 255, "instances": instances, "height": height, "width": width})

    def losses():
        with EventStorage():
            return model(inputs)

    return losses, lambda: model(inputs)


def tame(model: torch.nn.Module) -> None:
    """With frozen normalisation and random weights, activations grow from block to block: make them not."""
    for name, buffer in model.named_buffers():
        if name.endswith(("bn3.weight", "conv3.norm.weight")):
            buffer.fill_(0.2)


def standing_still(model: torch.nn.Module) -> torch.optim.Optimizer:
    """An optimiser that does all its work and changes nothing: random weights stay what they are."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(trained, lr=0.0, momentum=0.9, weight_decay=1e-4)


def training_step(losses: Callable, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    sum(losses().values()).backward()
    optimizer.step()


def main() -> None:
    args = batch_arguments(__doc__, side=320)
    images = list(torch.rand(args.images, 3, args.side, args.side))
    objects = targets(args.images, args.side, args.side, args.objects)
    models = {
        name: (model, torchvision_calls(model, images, objects))
        for name, model in torchvision_models(args.side, args.side).items()
    }
    if find_spec("detectron2") is not None:
        for name, model in detectron2_models(args.side, args.side).items():
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
