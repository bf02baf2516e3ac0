"""``FrozenDetector``: what training mask heads on a frozen detector needs from a backend."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor, nn

from maskx_d2.inference.mask_scores import ScoreCalibration
from maskx_d2.method import Recipe, Schedule


@dataclass(frozen=True)
class FoundObjects:
    """N detections in an image."""

    boxes: Tensor
    """(N, 4) x0, y0, x1, y1 in pixels of the image."""

    classes: Tensor
    """(N,) class indices."""

    scores: Tensor
    """(N,)."""


class SeenImage(ABC):
    """What a frozen detector makes of an image."""

    @abstractmethod
    def proposals(self) -> Tensor:
        """(P, 4) proposals, x0, y0, x1, y1 in pixels of the image."""

    @abstractmethod
    def detections(self) -> FoundObjects:
        """The detections, best first."""

    @abstractmethod
    def roi_features(self, boxes: Tensor, side: int) -> Tensor:
        """(R, 4) boxes in pixels of the image -> (R, C, side, side) features for a mask head."""


class MaskHead(nn.Module, ABC):
    """A mask head of a backend. Its trainable parameters are those that require gradients."""

    roi_side: int
    """Side of the RoI features that it takes."""

    @abstractmethod
    def forward(self, features: Tensor, classes: Tensor) -> Tensor:
        """
        Args:
            features: (N, C, roi_side, roi_side).
            classes: (N,) class indices.

        Returns:
            (N, M, M) mask logits.
        """

    @abstractmethod
    def save(
        self,
        folder: Path,
        *,
        with_masks: Sequence[int],
        by_teacher: Sequence[int] = (),
        calibration: ScoreCalibration,
    ) -> str:
        """
        Write the whole model, detector and mask head, as ``model_final`` and what else belongs to it.

        Args:
            folder: an existing folder.
            with_masks: indices of the classes that the head was trained on with masks.
            by_teacher: indices of the others that it was trained on with masks by a teacher.
            calibration: of its mask scores.

        Returns:
            The options of ``maskx predict`` that name the model.
        """


class FrozenDetector(ABC):
    """A trained detector, whose weights stay as they are."""

    class_names: list[str]
    category_ids: list[int]
    model: nn.Module
    """The detector without a mask head, in eval mode."""

    @abstractmethod
    def see(self, image: Image.Image) -> SeenImage:
        """Run the backbone on an RGB image."""

    @abstractmethod
    def mask_head(self, recipe: Recipe) -> MaskHead:
        """Build a new mask head on this detector, in training mode."""

    @abstractmethod
    def masks_as_rle(self, masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[dict]:
        """
        Paste masks into their image.

        Args:
            masks: (N, M, M) probabilities.
            boxes: (N, 4) in pixels of the image.
            size: height and width of the image.

        Returns:
            Compressed RLE of each mask.
        """

    @abstractmethod
    def recipe_yaml(self, recipe: Recipe, schedule: Schedule) -> str:
        """A config of the backend that trains a mask head by a recipe on this detector, as YAML."""

    @abstractmethod
    def to(self, device: str) -> "FrozenDetector":
        """Move the detector to a torch device, and return it."""

    def fingerprint(self) -> str:
        """A hash of its weights."""
        digest = hashlib.sha256()
        for name, value in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()
