"""``Detectron2FrozenDetector``: a detector of this backend on which mask heads are trained."""

from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Boxes
from PIL import Image
from torch import Tensor

from maskx_d2.backends.detectron2.checkpoint import Checkpointer, ClassList, KnownClasses, check_weights
from maskx_d2.backends.detectron2.mask_pasting import masks_as_rle
from maskx_d2.backends.detectron2.predict import inference_resize, known_classes, model_input
from maskx_d2.backends.detectron2.recipe_config import recipe_config
from maskx_d2.data.errors import InputError
from maskx_d2.data.files import write_text
from maskx_d2.inference.frozen_detector import FoundObjects, FrozenDetector, MaskHead, SeenImage
from maskx_d2.inference.mask_scores import ScoreCalibration
from maskx_d2.method import Recipe, Schedule, ramp
from maskx_d2.runtime.checkpoints import write_checkpoint


class Detectron2FrozenDetector(FrozenDetector):
    """See :class:`maskx_d2.inference.frozen_detector.FrozenDetector`."""

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: a YAML config, with MODEL.WEIGHTS. If neither the weights nor the config record the
                classes, those of DATASETS.TEST[0] are used.

        Raises:
            InputError: the ROI heads have no box head of their own, or the weights do not fit.
        """
        check_weights(cfg.MODEL.WEIGHTS)
        self._cfg = cfg
        self._classes = known_classes(cfg)
        self.class_names = list(self._classes.names)
        self.category_ids = list(self._classes.category_ids)
        boxes_only = cfg.clone()
        boxes_only.defrost()
        boxes_only.MODEL.MASK_ON = False
        self.model = build_model(boxes_only).eval().requires_grad_(False)
        heads = getattr(self.model, "roi_heads", None)
        if not isinstance(self.model, GeneralizedRCNN) or not isinstance(heads, StandardROIHeads):
            raise InputError(
                f"the model is a {type(self.model).__name__} with {type(heads).__name__}, expected a "
                "GeneralizedRCNN with StandardROIHeads or CascadeROIHeads"
            )
        Checkpointer(self.model).load(cfg.MODEL.WEIGHTS)

    def to(self, device: str) -> "Detectron2FrozenDetector":
        self.model.to(device)
        return self

    @torch.no_grad()
    def see(self, image: Image.Image) -> "_SeenImage":
        return _SeenImage(self.model, self._cfg, image)

    def mask_head(self, recipe: Recipe) -> "_Detectron2MaskHead":
        cfg = recipe_config(self._cfg, recipe)
        model = build_model(cfg)
        # Not from the file, which may have a mask head.
        model.load_state_dict(self.model.state_dict(), strict=False)
        model.requires_grad_(False)
        model.roi_heads.mask_head.requires_grad_(True)
        return _Detectron2MaskHead(model.to(self.model.device), cfg, self._classes)

    def masks_as_rle(self, masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[dict]:
        return masks_as_rle(masks, boxes, size)

    def recipe_yaml(self, recipe: Recipe, schedule: Schedule) -> str:
        cfg = recipe_config(self._cfg, recipe)
        cfg.MODEL.META_ARCHITECTURE = "FrozenDetectorRCNN"
        cfg.MODEL.ROI_MASK_HEAD.ROIS_PER_IMAGE = schedule.rois
        if recipe.box_supervision:
            start = ramp(schedule.steps)
            cfg.MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.START = start["start"]
            cfg.MODEL.ROI_MASK_HEAD.BOX_SUPERVISION.WARMUP = start["warmup"]
        solver = cfg.SOLVER
        solver.MASKX_OPTIMIZER, solver.BASE_LR = "AdamW", schedule.learning_rate
        solver.WEIGHT_DECAY, solver.LR_SCHEDULER_NAME = schedule.weight_decay, "WarmupCosineLR"
        solver.IMS_PER_BATCH, solver.MAX_ITER, solver.STEPS = schedule.images, schedule.steps, ()
        solver.WARMUP_ITERS, solver.REFERENCE_WORLD_SIZE = schedule.warmup_steps, 0
        return cfg.dump()


class _SeenImage(SeenImage):
    def __init__(self, model: GeneralizedRCNN, cfg: CfgNode, image: Image.Image):
        self._model, self._cfg = model, cfg
        of_model, _ = model_input(image, inference_resize(cfg), cfg.INPUT.FORMAT)
        height, width = of_model["image"].shape[-2:]
        self._scale = torch.tensor([width / image.width, height / image.height] * 2, device=model.device)
        images = model.preprocess_image([of_model])
        self._features = model.backbone(images.tensor)
        (self._proposals,), _ = model.proposal_generator(images, self._features, None)

    def proposals(self) -> Tensor:
        return self._proposals.proposal_boxes.tensor / self._scale

    @torch.no_grad()
    def detections(self) -> FoundObjects:
        (found,) = self._model.roi_heads._forward_box(self._features, [self._proposals])
        return FoundObjects(found.pred_boxes.tensor / self._scale, found.pred_classes, found.scores)

    @torch.no_grad()
    def roi_features(self, boxes: Tensor, side: int) -> Tensor:
        heads, options = self._cfg.MODEL.ROI_HEADS, self._cfg.MODEL.ROI_MASK_HEAD
        shapes = self._model.backbone.output_shape()
        pool = ROIPooler(
            output_size=side,
            scales=[1 / shapes[name].stride for name in heads.IN_FEATURES],
            sampling_ratio=options.POOLER_SAMPLING_RATIO,
            pooler_type=options.POOLER_TYPE,
        )
        of_model = boxes.to(self._scale) * self._scale
        return pool([self._features[name] for name in heads.IN_FEATURES], [Boxes(of_model)])


class _Detectron2MaskHead(MaskHead):
    def __init__(self, model: GeneralizedRCNN, cfg: CfgNode, classes: KnownClasses):
        super().__init__()
        self.model = model
        self._cfg, self._classes = cfg, classes
        self.roi_side = cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION

    def forward(self, features: Tensor, classes: Tensor) -> Tensor:
        return self.model.roi_heads.mask_head.mask_logits(features, classes)

    def train(self, mode: bool = True) -> "_Detectron2MaskHead":
        super().train(False)  # the detector's batch normalisation keeps its statistics
        self.model.roi_heads.mask_head.train(mode)
        self.training = mode
        return self

    def save(
        self,
        folder: Path,
        *,
        with_masks: Sequence[int],
        by_teacher: Sequence[int] = (),
        calibration: ScoreCalibration,
    ) -> str:
        path = folder / "model_final.pth"
        names, ids = self._classes.names, self._classes.category_ids
        classes = KnownClasses(names, ids, list(with_masks), list(by_teacher))
        state = {name: value.cpu() for name, value in self.model.state_dict().items()}
        write_checkpoint(
            path,
            {"model": state, ClassList.KEY: vars(classes), ScoreCalibration.KEY: calibration.as_dict()},
        )
        cfg = classes.written_into(self._cfg)
        cfg.MODEL.WEIGHTS = str(path)
        write_text(folder / "config.yaml", cfg.dump())
        return f"--config-file {folder / 'config.yaml'} --weights {path}"
