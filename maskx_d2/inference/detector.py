"""A trained model of either backend, and its detections in an image."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from maskx_d2.data.errors import InputError
from maskx_d2.data.images import MAX_MEGAPIXELS, read_image
from maskx_d2.evaluation.pictures import ClassStyle
from maskx_d2.inference.mask_scores import ScoreCalibration
from maskx_d2.runtime.optional_packages import need

if TYPE_CHECKING:
    import supervision


@dataclass(frozen=True)
class KnownObjects:
    """N objects of an image whose boxes and classes are known."""

    boxes: list[list[float]]
    """x0, y0, x1, y1 in pixels of the image."""

    category_ids: list[int]


@dataclass(frozen=True)
class PredictedMask:
    rle: dict[str, list[int] | str]
    """Compressed RLE of the image's size."""

    score: float
    """
    See :func:`maskx_d2.method.expected_iou`; :func:`maskx_d2.inference.masks_in_boxes.find_masks`
    calibrates it where the model has a calibration.
    """


class MaskPredictor(ABC):
    """Predicts masks in known boxes."""

    source: ClassVar[str] = "predicted"
    """``segmentation_source`` of annotations with its masks."""

    style: ClassStyle | None = None
    """The classes of the model, and which of them were trained with masks; None if it knows no classes."""

    calibration: ScoreCalibration | None = None
    """Of its mask scores, where cross-validation has measured one."""

    @abstractmethod
    def masks_in_boxes(
        self, images: Sequence[Image.Image], objects: Sequence[KnownObjects]
    ) -> Sequence[Sequence[PredictedMask | None]]:
        """
        Predict masks of objects whose boxes and classes are known: a mask for each object of each image, or
        None if the box is too small for one. A model without a ``style`` does not read the category ids.

        Raises:
            ValueError: the model has no mask head.
        """

    @abstractmethod
    def to(self, device: str) -> "MaskPredictor":
        """
        Move the model.

        Args:
            device: name of a torch device.

        Returns:
            This object.
        """


class Detector(MaskPredictor):
    """A trained model, as returned by :func:`maskx_d2.backends.load.load_detector`."""

    style: ClassStyle

    def use_precision(self, precision: str) -> "Detector":
        """
        Compute in a precision from now on.

        Args:
            precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``.

        Returns:
            This object.

        Raises:
            InputError: there is no such precision, or the model has only fp32.
        """
        if precision != "fp32":
            raise InputError(f"precision is {precision!r}, but {type(self).__name__} computes in fp32")
        return self

    @abstractmethod
    def coco_results(self, images: Sequence[Image.Image], image_ids: Sequence[int]) -> list[list[dict]]:
        """All detections in each of several RGB images, in COCO's results format."""

    def detect(
        self,
        image: Image.Image | str | Path,
        *,
        min_score: float = 0.5,
        max_megapixels: float = MAX_MEGAPIXELS,
    ) -> "supervision.Detections":
        """
        Detect objects in an image.

        Args:
            image: an image, or the path of an image file.
            min_score: detections below it are left out.
            max_megapixels: larger image files are refused.

        Returns:
            Boxes, scores, masks if the model predicts any, category ids as ``class_id``, and for each
            detection ``data["class_name"]`` and ``data["trained_with_masks"]``, whether its class was
            trained with masks.

        Raises:
            InputError: the image cannot be read, or supervision is not installed.
        """
        need("Detector.detect", "supervision")
        import supervision

        image = (
            image.convert("RGB")
            if isinstance(image, Image.Image)
            else read_image(Path(image), max_megapixels=max_megapixels)
        )
        (found,) = self.coco_results([image], [0])
        found = [d for d in found if d["score"] >= min_score]
        boxes = np.array([d["bbox"] for d in found], dtype=float).reshape(-1, 4)
        category_ids = np.array([d["category_id"] for d in found], dtype=int)
        masks = None
        if any("segmentation" in d for d in found):
            masks = np.stack([mask_util.decode(d["segmentation"]).astype(bool) for d in found])
        return supervision.Detections(
            xyxy=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
            mask=masks,
            confidence=np.array([d["score"] for d in found], dtype=float),
            class_id=category_ids,
            data={
                "class_name": np.array([self.style.names[i] for i in category_ids], dtype=object),
                "trained_with_masks": np.array([i in self.style.with_masks for i in category_ids], bool),
            },
        )
