"""``TorchvisionDetector``: a model of this backend for ``maskx predict``."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from maskx_d2.backends.torchvision.checkpoint import SavedModel
from maskx_d2.backends.torchvision.detections import coco_results, detect
from maskx_d2.backends.torchvision.mask_pasting import masks_as_rle
from maskx_d2.backends.torchvision.model import MaskXRCNN
from maskx_d2.data.errors import InputError
from maskx_d2.evaluation.pictures import ClassStyle
from maskx_d2.inference.detector import Detector, KnownObjects, PredictedMask
from maskx_d2.inference.precision import Autocast


class TorchvisionDetector(Detector):
    """See :class:`maskx_d2.inference.detector.Detector`."""

    def __init__(self, checkpoint: Path):
        """
        Args:
            checkpoint: a checkpoint of :class:`TrainingModule`.
        """
        saved = SavedModel.read(checkpoint)
        self.calibration = saved.calibration
        self._model = saved.build().eval()
        self._autocast = Autocast(self._model)
        self.to("cuda" if torch.cuda.is_available() else "cpu")
        self._category_ids = list(saved.options["category_ids"])
        self.style = ClassStyle(
            names=dict(zip(self._category_ids, saved.options["class_names"], strict=True)),
            with_masks=frozenset(self._category_ids[i] for i in saved.trained_with_masks),
            by_teacher=frozenset(self._category_ids[i] for i in saved.trained_by_teacher),
        )

    def to(self, device: str) -> "TorchvisionDetector":
        self._model.to(device)
        self._device = torch.device(device)
        return self

    def use_precision(self, precision: str) -> "TorchvisionDetector":
        self._autocast = Autocast(self._model, precision)
        return self

    @torch.inference_mode()
    def coco_results(self, images: Sequence[Image.Image], image_ids: Sequence[int]) -> list[list[dict]]:
        with self._autocast.on(self._device):
            found = detect(self._model, [self._pixels(image) for image in images])
        return [
            coco_results(detections, image_id, self._category_ids, size=(image.height, image.width))
            for detections, image_id, image in zip(found, image_ids, images, strict=True)
        ]

    def masks_in_boxes(
        self, images: Sequence[Image.Image], objects: Sequence[KnownObjects]
    ) -> list[list[PredictedMask]]:
        if not isinstance(self._model, MaskXRCNN):
            raise InputError("the model has no mask head: it was trained with predictor=null")
        labels = {category_id: label for label, category_id in enumerate(self._category_ids, start=1)}
        with self._autocast.on(self._device):
            found = self._model.masks_in_boxes(
                [self._pixels(image) for image in images],
                [torch.tensor(of_image.boxes, device=self._device) for of_image in objects],
                [
                    torch.tensor([labels[i] for i in of_image.category_ids], device=self._device)
                    for of_image in objects
                ],
                paste=False,
            )
        predicted = []
        for of_image, image in zip(found, images, strict=True):
            rles = masks_as_rle(of_image["masks"][:, 0], of_image["boxes"], (image.height, image.width))
            predicted.append(list(map(PredictedMask, rles, of_image["mask_scores"].tolist())))
        return predicted

    def _pixels(self, image: Image.Image) -> Tensor:
        pixels = v2.functional.pil_to_tensor(image).to(self._device)
        return v2.functional.to_dtype(pixels, torch.float32, scale=True)
