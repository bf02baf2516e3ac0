"""``PartiallySupervisedMapper``: Detectron2's dataset mapper for annotations that may have no mask."""

from pathlib import Path
from reprlib import repr as shown

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY
from detectron2.structures import Instances
from detectron2.utils.file_io import PathManager

from maskx_d2.backends.detectron2.config import check_has_keys, in_place_of
from maskx_d2.backends.detectron2.labelled_classes import LabelledClasses, unpack_classes
from maskx_d2.backends.detectron2.partial_bit_masks import PartialBitMasks
from maskx_d2.backends.detectron2.partial_supervision import PartialSupervision
from maskx_d2.data.coco_format import are_keypoints
from maskx_d2.data.errors import InputError
from maskx_d2.data.images import MAX_MEGAPIXELS, open_image
from maskx_d2.data.rle import check_rle

_MIN_BOX_SIDE = 1e-5  # pixels; Detectron2's own limit for an empty box


class PartiallySupervisedMapper(DatasetMapper):
    """
    Like Detectron2's ``DatasetMapper``, but every instance gets ``gt_has_mask`` (bool): whether its
    annotation has a ``segmentation``. An instance without one is kept, with an empty mask in ``gt_masks``,
    or with that of a teacher and its score in ``gt_teacher_score`` (float, 0 for none).
    The ``labelled_classes`` of an image (see :func:`pack_classes`) become ``gt_labelled_classes``, a
    :class:`LabelledClasses`.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        num_classes: int | None = None,
        expected_roi_heads: str | None = None,
        max_megapixels: float = MAX_MEGAPIXELS,
        num_keypoints: int | None = None,
        with_teacher: bool = False,
        **kwargs,
    ):
        """
        Args:
            is_train: whether it is used in training.
            num_classes: number of classes of the model; needed for images with ``labelled_classes``.
            expected_roi_heads: the ROI heads to use instead, if the model's would train on empty masks and
                take unlabelled classes for background. Such data are then errors.
            max_megapixels: larger images are refused.
            num_keypoints: number of keypoints of an instance, if the model has any.
            with_teacher: whether to read masks by a teacher.
            kwargs: see ``DatasetMapper``.
        """
        super().__init__(is_train, **kwargs)
        self.num_classes = num_classes
        self.expected_roi_heads = expected_roi_heads
        self.max_megapixels = max_megapixels
        self.num_keypoints = num_keypoints
        self.with_teacher = with_teacher

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        check_has_keys(cfg)
        ret = super().from_config(cfg, is_train)
        if cfg.MODEL.KEYPOINT_ON:
            ret["num_keypoints"] = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
        ret["with_teacher"] = cfg.MODEL.ROI_MASK_HEAD.TEACHER.WEIGHT > 0
        ret["max_megapixels"] = cfg.INPUT.MAX_MEGAPIXELS
        ret["num_classes"] = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        name = cfg.MODEL.ROI_HEADS.NAME
        if not issubclass(ROI_HEADS_REGISTRY.get(name), PartialSupervision):
            ret["expected_roi_heads"] = in_place_of(name)
        return ret

    def __call__(self, dataset_dict: dict) -> dict:
        file_name = dataset_dict["file_name"]
        path = Path(PathManager.get_local_path(file_name))
        with open_image(path, max_megapixels=self.max_megapixels):
            pass  # Detectron2 would let Pillow clip pixels of more than 8 bits.
        try:
            result = super().__call__(dataset_dict)
        except (OSError, SyntaxError) as error:  # Pillow raises both
            raise InputError(f"{file_name} cannot be read as an image: {error}") from error
        if "instances" in result and "labelled_classes" in result:
            instances, packed = result["instances"], result.pop("labelled_classes")
            instances.gt_labelled_classes = self._unpack(packed, file_name, len(instances))
        return result

    @staticmethod
    def _check_rle(rle: dict, file_name: str) -> None:
        """Also for datasets that were read by Detectron2, which does not check RLE."""
        try:
            check_rle(rle)
        except ValueError as error:
            raise InputError(f"an annotation of {file_name} {error}") from error

    def _check_keypoints(self, keypoints: object, file_name: str) -> None:
        number = self.num_keypoints
        if are_keypoints(keypoints) and number in (None, len(keypoints) // 3):
            return
        expected = "x, y and visibility of each" + (f" of {number}" if number is not None else "")
        raise InputError(
            f"{file_name} has an annotation with the keypoints {shown(keypoints)}, expected {expected}"
        )

    @staticmethod
    def _use_teacher(annotation: dict) -> float:
        """Give an annotation without a mask that of a teacher; returns its score, 0 for none."""
        if annotation.get("segmentation") or "teacher_segmentation" not in annotation:
            return 0.0
        annotation["segmentation"] = annotation["teacher_segmentation"]
        return annotation.get("teacher_score", 0.0)

    def _unpack(self, packed: np.ndarray, file_name: str, num_instances: int) -> LabelledClasses:
        if self.expected_roi_heads is not None:
            raise InputError(
                f"{file_name} is from a dataset that does not label all classes: MODEL.ROI_HEADS.NAME must "
                f"be {self.expected_roi_heads!r}"
            )
        if self.num_classes is None:
            raise InputError(
                f"{file_name} is of a dataset that labels only some classes: the mapper needs num_classes"
            )
        return LabelledClasses(unpack_classes(packed, self.num_classes), num_instances)

    def _transform_annotations(self, dataset_dict: dict, transforms, image_shape) -> None:
        file_name = dataset_dict["file_name"]
        if self.use_keypoint:
            for annotation in dataset_dict["annotations"]:
                self._check_keypoints(annotation.get("keypoints"), file_name)
        if not self.use_instance_mask:
            super()._transform_annotations(dataset_dict, transforms, image_shape)
            return
        annotations = [a for a in dataset_dict.pop("annotations") if not a.get("iscrowd", 0)]
        has_mask = [bool(annotation.get("segmentation")) for annotation in annotations]
        if self.expected_roi_heads is not None and not all(has_mask):
            raise InputError(
                f"{file_name} has {has_mask.count(False)} annotations without segmentation: "
                f"MODEL.ROI_HEADS.NAME must be {self.expected_roi_heads!r}"
            )
        scores = [self._use_teacher(a) for a in annotations] if self.with_teacher else []
        for annotation in annotations:
            if not self.use_keypoint:
                annotation.pop("keypoints", None)
            if self.instance_mask_format == "polygon" and isinstance(annotation.get("segmentation"), dict):
                raise InputError(
                    f"{file_name} has an annotation whose segmentation is RLE, but INPUT.MASK_FORMAT is "
                    "'polygon': use 'bitmask'"
                )
            if isinstance(annotation.get("segmentation"), dict):
                self._check_rle(annotation["segmentation"], file_name)
            if not annotation.get("segmentation"):
                annotation.pop("segmentation", None)
            utils.transform_instance_annotations(
                annotation,
                transforms,
                image_shape,
                keypoint_hflip_indices=self.keypoint_hflip_indices,
            )
        instances = self._instances(annotations, image_shape)
        instances.gt_has_mask = torch.tensor(has_mask, dtype=torch.bool)
        if self.with_teacher:
            instances.gt_teacher_score = torch.tensor(scores, dtype=torch.float32)
        if not annotations:
            dataset_dict["instances"] = instances
            return
        if self.recompute_boxes:
            tight = instances.gt_masks.get_bounding_boxes().tensor
            boxes = instances.gt_boxes.tensor
            boxes[instances.gt_has_mask] = tight[instances.gt_has_mask].to(boxes.dtype)
        # As in Detectron2, an instance whose mask was emptied by a crop is removed. An instance that never
        # had a mask is kept.
        keep = instances.gt_boxes.nonempty(threshold=_MIN_BOX_SIDE)
        has_pixels = instances.gt_masks.nonempty()
        keep &= has_pixels | ~instances.gt_has_mask
        if self.with_teacher:
            instances.gt_teacher_score *= has_pixels
        dataset_dict["instances"] = instances[keep]

    def _instances(self, annotations: list[dict], image_shape: tuple[int, int]) -> Instances:
        """Build the instances of an image. Detectron2 expects a segmentation for all or none of them."""
        if self.instance_mask_format == "polygon":
            complete = [{"segmentation": [], **annotation} for annotation in annotations]
            return utils.annotations_to_instances(complete, image_shape, mask_format="polygon")
        boxes_only = [{k: v for k, v in a.items() if k != "segmentation"} for a in annotations]
        instances = utils.annotations_to_instances(boxes_only, image_shape)
        if annotations:
            has_mask = torch.tensor(["segmentation" in annotation for annotation in annotations])
            with_mask = [annotation for annotation in annotations if "segmentation" in annotation]
            of_some = utils.annotations_to_instances(with_mask, image_shape, mask_format="bitmask")
            masks = of_some.gt_masks.tensor if with_mask else torch.zeros(0, *image_shape, dtype=torch.bool)
            index = torch.where(has_mask, has_mask.cumsum(0) - 1, -1)
            instances.gt_masks = PartialBitMasks(masks, index)
        return instances
