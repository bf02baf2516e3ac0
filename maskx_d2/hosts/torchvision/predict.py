"""``TorchvisionDetector``: a model of this host for ``maskx predict``."""

from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms import v2

from maskx_d2.evaluation.pictures import ClassStyle
from maskx_d2.hosts.torchvision.detections import coco_results
from maskx_d2.hosts.torchvision.training import TrainingModule


class TorchvisionDetector:
    """See :class:`maskx_d2.predict.Detector`."""

    def __init__(self, checkpoint: Path):
        """
        Args:
            checkpoint: of :class:`TrainingModule`.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        module = TrainingModule.from_checkpoint(checkpoint)
        self._model = module.model.eval().to(device)
        self._device = device
        classes = module.hparams
        self._category_ids = classes.category_ids
        self.style = ClassStyle(
            names=dict(zip(classes.category_ids, classes.class_names, strict=True)),
            with_masks=frozenset(classes.category_ids[i] for i in classes.classes_with_masks),
        )

    @torch.inference_mode()
    def detect(self, image: Image.Image, image_id: int) -> list[dict]:
        pixels = v2.functional.pil_to_tensor(image)
        pixels = v2.functional.to_dtype(pixels, torch.float32, scale=True).to(self._device)
        (detections,) = self._model([pixels])
        return coco_results(detections, image_id, self._category_ids)
