"""``TorchvisionFrozenDetector``: a detector of this backend on which mask heads are trained."""

from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from PIL import Image
from torch import Tensor
from torchvision.models.detection import FasterRCNN, FasterRCNN_ResNet50_FPN_Weights
from torchvision.models.detection.transform import resize_boxes
from torchvision.ops import MultiScaleRoIAlign
from torchvision.transforms import v2

from maskx_d2.backends.torchvision.checkpoint import (
    LIGHTNING_VERSION,
    TRAINED_BY_TEACHER,
    TRAINED_WITH_MASKS,
    build_model,
    check_model,
    load_detector_weights,
    model_options,
)
from maskx_d2.backends.torchvision.mask_pasting import masks_as_rle
from maskx_d2.backends.torchvision.model import MaskXRCNN
from maskx_d2.data.class_names import coco_class_names
from maskx_d2.inference.frozen_detector import FoundObjects, FrozenDetector, MaskHead, SeenImage
from maskx_d2.inference.mask_scores import ScoreCalibration
from maskx_d2.method import Recipe, Schedule, ramp
from maskx_d2.runtime.checkpoints import read_checkpoint, write_checkpoint

_LIGHTNING_VERSION = "2.6.0"  # whose form of checkpoints is written here
_RECIPE_OPTIONS = (
    "predictor",
    "class_embedding",
    "embedding_dropout",
    "mlp_layers",
    "mlp_reduced_channels",
    "trunk",
    "train_rois",
)


class TorchvisionFrozenDetector(FrozenDetector):
    """See :class:`maskx_d2.inference.frozen_detector.FrozenDetector`."""

    def __init__(self, checkpoint: Path):
        """
        Args:
            checkpoint: a checkpoint of :class:`TrainingModule`, with or without a mask head, or the COCO
                weights of torchvision's ``fasterrcnn_resnet50_fpn``.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a checkpoint of this backend.
        """
        self._path = checkpoint
        content = read_checkpoint(checkpoint)
        is_own = "hyper_parameters" in content or "state_dict" in content
        self._options = check_model(checkpoint, content) if is_own else _options_of_torchvision()
        self.class_names = list(self._options["class_names"])
        self.category_ids = list(self._options["category_ids"])
        self.model = self._build(predictor=None).eval().requires_grad_(False)
        load_detector_weights(self.model, str(checkpoint), class_names=self.class_names)
        self._device = torch.device("cpu")

    def to(self, device: str) -> "TorchvisionFrozenDetector":
        self.model.to(device)
        self._device = torch.device(device)
        return self

    @torch.no_grad()
    def see(self, image: Image.Image) -> "_SeenImage":
        pixels = v2.functional.to_dtype(v2.functional.pil_to_tensor(image), torch.float32, scale=True)
        return _SeenImage(self.model, pixels.to(self._device))

    def mask_head(self, recipe: Recipe) -> "_TorchvisionMaskHead":
        options = _recipe_options(recipe)
        model = self._build(**options)
        model.load_state_dict(self.model.state_dict(), strict=False)
        model.freeze_detector()
        return _TorchvisionMaskHead(model.to(self._device), {**self._options, **options})

    def masks_as_rle(self, masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[dict]:
        return masks_as_rle(masks, boxes, size)

    def recipe_yaml(self, recipe: Recipe, schedule: Schedule) -> str:
        model = {
            **model_options(self._options),
            **_recipe_options(recipe),
            "detector": str(self._path.resolve()),
            "rois_per_image": schedule.rois,
            "optimizer": "AdamW",
            "learning_rate": schedule.learning_rate,
            "weight_decay": schedule.weight_decay,
            "warmup_steps": schedule.warmup_steps,
            "lr_schedule": "cosine",
        }
        if recipe.box_supervision:
            model["box_supervision"] = {**recipe.box_supervision, **ramp(schedule.steps)}
        config = {
            "model": {name: _plain(value) for name, value in model.items()},
            "data": {"batch_size": schedule.images},
            "trainer": {"max_steps": schedule.steps},
        }
        return yaml.safe_dump(config, sort_keys=False)

    def _build(self, **options) -> FasterRCNN:
        return build_model(self._options, **options)


class _SeenImage(SeenImage):
    def __init__(self, model: FasterRCNN, pixels: Tensor):
        self._model = model
        self._size = tuple(pixels.shape[-2:])
        images, _ = model.transform([pixels])
        self._resized = images.image_sizes
        self._features = model.backbone(images.tensors)
        (self._proposals,), _ = model.rpn(images, self._features)

    def proposals(self) -> Tensor:
        return resize_boxes(self._proposals, self._resized[0], self._size)

    @torch.no_grad()
    def detections(self) -> FoundObjects:
        heads = self._model.roi_heads
        proposals = [self._proposals]
        box_features = heads.box_head(heads.box_roi_pool(self._features, proposals, self._resized))
        logits, deltas = heads.box_predictor(box_features)
        (boxes,), (scores,), (labels,) = heads.postprocess_detections(
            logits, deltas, proposals, self._resized
        )
        return FoundObjects(resize_boxes(boxes, self._resized[0], self._size), labels - 1, scores)

    @torch.no_grad()
    def roi_features(self, boxes: Tensor, side: int) -> Tensor:
        # As for the mask heads of maskx_rcnn_resnet_fpn.
        pool = MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=side, sampling_ratio=2)
        of_model = resize_boxes(boxes.to(self._proposals), self._size, self._resized[0])
        return pool(self._features, [of_model], self._resized)


class _TorchvisionMaskHead(MaskHead):
    def __init__(self, model: MaskXRCNN, options: dict):
        super().__init__()
        self.model = model
        self.options = options
        self.roi_side = model.roi_heads.mask_roi_pool.output_size[0]

    def forward(self, features: Tensor, classes: Tensor) -> Tensor:
        heads = self.model.roi_heads
        return heads.mask_predictor(heads.mask_head(features), classes)

    def save(
        self,
        folder: Path,
        *,
        with_masks: Sequence[int],
        by_teacher: Sequence[int] = (),
        calibration: ScoreCalibration,
    ) -> str:
        path = folder / "model_final.ckpt"
        state = {f"model.{name}": value.cpu() for name, value in self.model.state_dict().items()}
        write_checkpoint(
            path,
            {
                "state_dict": state,
                "hyper_parameters": self.options,
                TRAINED_WITH_MASKS: list(with_masks),
                TRAINED_BY_TEACHER: list(by_teacher),
                ScoreCalibration.KEY: calibration.as_dict(),
                LIGHTNING_VERSION: _LIGHTNING_VERSION,
            },
        )
        return f"--weights {path}"


def _options_of_torchvision() -> dict:
    """Of ``fasterrcnn_resnet50_fpn`` with COCO's classes."""
    ids = [
        category_id
        for category_id, name in enumerate(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
        if name not in ("__background__", "N/A")
    ]
    return {
        "class_names": coco_class_names(),
        "category_ids": ids,
        "classes_with_masks": list(range(len(ids))),
        "depth": 50,
        "norm": "FrozenBN",
    }


def _recipe_options(recipe: Recipe) -> dict:
    """Options of :func:`maskx_rcnn_resnet_fpn`."""
    return {
        **{name: getattr(recipe, name) for name in _RECIPE_OPTIONS},
        "mask_head_channels": [recipe.channels] * 4,
        "hourglass_channels": recipe.channels,
        "box_supervision": dict(recipe.box_supervision) or None,
        "teacher": dict(recipe.teacher) or None,
    }


def _plain(value):
    """Tuples as lists, for YAML."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
