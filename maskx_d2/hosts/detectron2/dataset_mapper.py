"""``PartiallySupervisedMapper``: Detectron2's dataset mapper for annotations of which some have no mask."""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY

from maskx_d2.hosts.detectron2.labelled_classes import LabelledClasses
from maskx_d2.hosts.detectron2.roi_heads import PartiallySupervisedROIHeads

_MIN_BOX_SIDE = 1e-5  # pixels; Detectron2's own limit for an empty box


class PartiallySupervisedMapper(DatasetMapper):
    """
    As Detectron2's ``DatasetMapper``, and every instance gets ``gt_has_mask`` (bool): whether its
    annotation has a ``segmentation``. An instance without one has an empty ``gt_masks`` and is kept.
    Images with ``labelled_classes``, the indices of the classes that are labelled in them, have it as
    ``gt_labelled_classes``, a :class:`LabelledClasses`.
    """

    @configurable
    def __init__(
        self, is_train: bool, *, num_classes: int | None = None, masks_required: bool = False, **kwargs
    ):
        """
        Args:
            is_train: whether it is used in training.
            num_classes: of the model; needed for images with ``labelled_classes``.
            masks_required: whether an annotation without mask is an error, because the model would
                train on its empty mask.
            kwargs: see ``DatasetMapper``.
        """
        super().__init__(is_train, **kwargs)
        self.num_classes = num_classes
        self.masks_required = masks_required

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        ret = super().from_config(cfg, is_train)
        ret["num_classes"] = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        roi_heads = ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)
        ret["masks_required"] = not issubclass(roi_heads, PartiallySupervisedROIHeads)
        return ret

    def __call__(self, dataset_dict: dict) -> dict:
        try:
            result = super().__call__(dataset_dict)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"image {dataset_dict['file_name']} does not exist") from error
        except OSError as error:
            raise ValueError(f"{dataset_dict['file_name']} cannot be read as an image: {error}") from error
        if "instances" in result and "labelled_classes" in result:
            is_labelled = torch.zeros(self.num_classes, dtype=torch.bool)
            is_labelled[result.pop("labelled_classes")] = True
            instances = result["instances"]
            instances.gt_labelled_classes = LabelledClasses(is_labelled, len(instances))
        return result

    def _transform_annotations(self, dataset_dict: dict, transforms, image_shape) -> None:
        if not self.use_instance_mask:
            super()._transform_annotations(dataset_dict, transforms, image_shape)
            return
        file_name = dataset_dict["file_name"]
        annotations = [a for a in dataset_dict.pop("annotations") if not a.get("iscrowd", 0)]
        has_mask = [bool(annotation.get("segmentation")) for annotation in annotations]
        if self.masks_required and not all(has_mask):
            raise ValueError(
                f"{file_name} has {has_mask.count(False)} annotations without segmentation, which "
                "MODEL.ROI_HEADS.NAME must be 'PartiallySupervisedROIHeads' for"
            )
        for annotation in annotations:
            if not self.use_keypoint:
                annotation.pop("keypoints", None)
            if self.instance_mask_format == "polygon" and isinstance(annotation.get("segmentation"), dict):
                raise ValueError(
                    f"{file_name} has an annotation whose segmentation is RLE, but INPUT.MASK_FORMAT is "
                    "'polygon': use 'bitmask'"
                )
            if not annotation.get("segmentation"):
                annotation.pop("segmentation", None)
            utils.transform_instance_annotations(
                annotation,
                transforms,
                image_shape,
                keypoint_hflip_indices=self.keypoint_hflip_indices,
            )
        # Detectron2 wants a segmentation from all or none: one without polygons is an empty mask.
        for annotation in annotations:
            annotation.setdefault("segmentation", [])
        instances = utils.annotations_to_instances(
            annotations, image_shape, mask_format=self.instance_mask_format
        )
        instances.gt_has_mask = torch.tensor(has_mask, dtype=torch.bool)
        if not annotations:
            dataset_dict["instances"] = instances
            return
        if self.recompute_boxes:
            tight = instances.gt_masks.get_bounding_boxes().tensor
            boxes = instances.gt_boxes.tensor
            boxes[instances.gt_has_mask] = tight[instances.gt_has_mask].to(boxes.dtype)
        # A mask that a crop has emptied takes its instance away, as in Detectron2; one that was never
        # there does not.
        keep = instances.gt_boxes.nonempty(threshold=_MIN_BOX_SIDE)
        keep &= instances.gt_masks.nonempty() | ~instances.gt_has_mask
        dataset_dict["instances"] = instances[keep]
