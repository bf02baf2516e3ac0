"""``PromptableModel``: masks of boxes by SAM, SAM 2 or the tracker of SAM 3."""

from collections.abc import Iterator, Sequence

import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig

from maskx_d2.data.errors import InputError
from maskx_d2.data.rle import encode
from maskx_d2.inference.detector import KnownObjects, MaskPredictor, PredictedMask
from maskx_d2.inference.precision import PRECISIONS, check_precision

_SAM_2 = ("Sam2Model", "Sam2Processor")
_SAM_3 = ("Sam3TrackerModel", "Sam3TrackerProcessor")
# The model type of a config -> the classes of transformers that take boxes. Checkpoints of SAM 2 and SAM 3
# are published with the configs of the whole video models.
_CLASSES = {
    "sam": ("SamModel", "SamProcessor"),
    "sam2": _SAM_2,
    "sam2_video": _SAM_2,
    "sam3_tracker": _SAM_3,
    "sam3_video": _SAM_3,
}
_BOXES_AT_ONCE = 64  # for the mask decoder
_PIXELS_AT_ONCE = 64_000_000  # of masks of the image's size, with 4 bytes each


class PromptableModel(MaskPredictor):
    """
    A promptable model of `transformers <https://huggingface.co/docs/transformers>`_ that gives a mask for
    each box. It encodes an image once for all of its boxes. Mask scores are the IoU that the model
    predicts.
    """

    source = "teacher"

    def __init__(self, name: str, *, precision: str = "fp32", within_boxes: bool = False):
        """
        Args:
            name: folder of a model, as ``save_pretrained`` writes it, or a name on the Hugging Face Hub. A
                name is looked up in the local cache, and downloaded if it is not there.
            precision: key of :data:`maskx_d2.inference.precision.PRECISIONS`, of the weights on a GPU. On a
                CPU they are float32.
            within_boxes: whether to remove the pixels of a mask that are outside its box.

        Raises:
            InputError: there is no such model, or it does not take boxes.
        """
        check_precision(precision)
        model_type = _load(name, AutoConfig).model_type
        if model_type not in _CLASSES:
            raise InputError(
                f"teacher {name} is a model of type {model_type!r}, expected one that takes boxes: "
                f"{', '.join(_CLASSES)}"
            )
        of_model, of_processor = (getattr(transformers, which) for which in _CLASSES[model_type])
        self._processor = _load(name, of_processor)
        self._model: nn.Module = _load(name, of_model).eval()
        self._precision = PRECISIONS[precision]
        self._within_boxes = within_boxes
        self.to("cpu")

    def to(self, device: str) -> "PromptableModel":
        self._device = torch.device(device)
        self._dtype = torch.float32 if self._device.type == "cpu" else self._precision
        self._model.to(self._device, self._dtype)
        return self

    def masks_in_boxes(
        self, images: Sequence[Image.Image], objects: Sequence[KnownObjects]
    ) -> list[list[PredictedMask | None]]:
        """
        See :class:`MaskPredictor`.

        Raises:
            InputError: an image needs more memory than there is.
        """
        found = []
        for image, of_image in zip(images, objects, strict=True):
            try:
                found.append(list(self._masks_of_image(image, of_image.boxes)) if of_image.boxes else [])
            except (RuntimeError, MemoryError) as error:
                is_memory = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)
                if not is_memory and "memory" not in str(error):  # torch's error on a CPU
                    raise
                width, height = image.size
                raise InputError(
                    f"an image of {width} x {height} pixels with {len(of_image.boxes)} boxes needs more "
                    "memory than there is for the teacher, expected smaller images: see --max-megapixels"
                ) from error
        return found

    @torch.inference_mode()
    def _masks_of_image(
        self, image: Image.Image, boxes: Sequence[Sequence[float]]
    ) -> Iterator[PredictedMask | None]:
        width, height = image.size
        inputs = self._processor(images=image, input_boxes=[list(map(list, boxes))], return_tensors="pt")
        pixels = inputs["pixel_values"].to(self._device, self._dtype)
        embeddings = self._model.get_image_embeddings(pixels)
        prompts = inputs["input_boxes"].to(self._device, self._dtype)
        sizes = [inputs[key] for key in ("original_sizes", "reshaped_input_sizes") if key in inputs]
        at_once = max(1, min(_BOXES_AT_ONCE, _PIXELS_AT_ONCE // (width * height)))
        for start in range(0, len(boxes), at_once):
            part = slice(start, start + at_once)
            found = self._model(
                image_embeddings=embeddings, input_boxes=prompts[:, part], multimask_output=False
            )
            (masks,) = self._processor.post_process_masks(found.pred_masks.float(), *sizes)
            scores = found.iou_scores.float().clamp(0, 1)[0, :, 0].tolist()
            for mask, score, box in zip(masks[:, 0], scores, boxes[part], strict=True):
                if self._within_boxes:
                    mask = _cut(mask, box)
                yield PredictedMask(encode(mask.cpu().numpy()), score) if mask.any() else None


def _cut(mask: Tensor, box: Sequence[float]) -> Tensor:
    """A (H, W) mask without the pixels whose centre is outside a box x0, y0, x1, y1."""
    height, width = mask.shape
    rows = torch.arange(height, device=mask.device) + 0.5
    columns = torch.arange(width, device=mask.device) + 0.5
    x0, y0, x1, y1 = box
    in_rows, in_columns = (rows >= y0) & (rows <= y1), (columns >= x0) & (columns <= x1)
    return mask & in_rows[:, None] & in_columns


def _load(name: str, kind: type):
    """What ``from_pretrained`` returns. Code that comes with a model is never run."""
    try:
        return kind.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"teacher {name} cannot be loaded, expected a folder that save_pretrained wrote, or the name "
            f"of a model in the local cache or on the Hugging Face Hub: {reason}"
        ) from error
