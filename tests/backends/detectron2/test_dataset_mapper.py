import copy

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from maskx_d2.backends.detectron2.dataset_mapper import PartiallySupervisedMapper

from ...evaluation.synthetic import disk, rle
from ...largest_tensor import LargestTensor
from . import tiny

POLYGON = [[10.0, 10, 50, 10, 50, 40, 10, 40]]


@pytest.fixture
def image(tmp_path):
    Image.fromarray(np.zeros((160, 160, 3), np.uint8)).save(tmp_path / "image.png")
    return {"file_name": str(tmp_path / "image.png"), "height": 160, "width": 160, "image_id": 1}


def annotation(segmentation=None, category_id=0, box=(10, 10, 50, 40), **more):
    result = {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": category_id, "iscrowd": 0}
    if segmentation is not None:
        result["segmentation"] = segmentation
    return {**result, **more}


def mapper(mask_format="bitmask", cls=PartiallySupervisedMapper, **kwargs):
    arguments = {
        "is_train": True,
        "augmentations": [],
        "image_format": "RGB",
        "use_instance_mask": True,
        "instance_mask_format": mask_format,
        **kwargs,
    }
    return cls(**arguments)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_every_instance_says_whether_it_has_a_mask(image, mask_format, order):
    annotations = [annotation(POLYGON, 0), annotation(None, 1), annotation([], 2)]
    image["annotations"] = [annotations[i] for i in order]
    instances = mapper(mask_format)(image)["instances"]
    assert instances.gt_classes.tolist() == order
    assert instances.gt_has_mask.tolist() == [i == 0 for i in order]
    assert instances.gt_masks.nonempty().tolist() == [i == 0 for i in order]
    # The masks there are can be cropped by their boxes, whatever is beside them.
    kept = instances[instances.gt_has_mask]
    assert kept.gt_masks.crop_and_resize(kept.gt_boxes.tensor, 28).all()


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_with_all_masks_it_gives_what_the_stock_mapper_gives(image, mask_format):
    image["annotations"] = [annotation(POLYGON, 3), annotation(POLYGON, 1), annotation(POLYGON, iscrowd=1)]
    augmentations = [T.ResizeShortestEdge(100), T.RandomFlip(prob=1.0)]
    ours, stock = (
        mapper(mask_format, cls, augmentations=augmentations)(image)
        for cls in (PartiallySupervisedMapper, DatasetMapper)
    )
    assert torch.equal(ours["image"], stock["image"])
    ours, stock = ours["instances"], stock["instances"]
    assert torch.equal(ours.gt_boxes.tensor, stock.gt_boxes.tensor)
    assert torch.equal(ours.gt_classes, stock.gt_classes)
    boxes = stock.gt_boxes.tensor
    assert torch.equal(ours.gt_masks.crop_and_resize(boxes, 28), stock.gt_masks.crop_and_resize(boxes, 28))


def test_boxes_without_masks_take_no_memory_for_masks(image):
    box = (10, 10, 50, 40)
    image["annotations"] = [annotation(None, i % 4, box=box) for i in range(200)]
    with LargestTensor() as largest:
        instances = mapper(augmentations=[])(image)["instances"]
    assert len(instances) == 200 and not instances.gt_has_mask.any()
    assert largest.numel <= 3 * 160 * 160  # the image
    assert instances.gt_masks.tensor.shape == (200, 160, 160)


def test_a_crop_takes_away_what_it_empties_and_keeps_what_never_had_a_mask(image):
    image["annotations"] = [
        annotation(rle(disk(30, 25, 12)), 0),
        annotation(rle(disk(120, 120, 20)), 1, box=(20, 20, 140, 140)),  # its mask is outside the crop
        annotation(None, 2, box=(20, 20, 140, 140)),
        annotation(None, 3, box=(100, 100, 140, 140)),  # its box is outside the crop
    ]
    crop = T.CropTransform(0, 0, 80, 80)
    instances = mapper(augmentations=[crop])(image)["instances"]
    assert instances.gt_classes.tolist() == [0, 2]
    assert instances.gt_has_mask.tolist() == [True, False]
    assert instances.gt_boxes.tensor[1].tolist() == [20, 20, 80, 80]


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_boxes_are_recomputed_from_masks_where_there_are_masks(image, mask_format):
    image["annotations"] = [
        annotation(POLYGON, 0, box=(0, 0, 100, 100)),
        annotation(None, 1, box=(0, 0, 100, 100)),
    ]
    boxes = mapper(mask_format, recompute_boxes=True)(image)["instances"].gt_boxes.tensor
    assert boxes.tolist() == [[10, 10, 50, 40], [0, 0, 100, 100]]


def test_images_without_annotations_and_boxes_only_training_are_as_in_the_stock_mapper(image):
    image["annotations"] = []
    instances = mapper()(image)["instances"]
    assert len(instances) == 0 and instances.has("gt_has_mask")
    image["annotations"] = [annotation(POLYGON), annotation(None)]
    boxes_only = mapper(use_instance_mask=False)(copy.deepcopy(image))["instances"]
    assert len(boxes_only) == 2 and not boxes_only.has("gt_masks")
    assert "instances" not in mapper(is_train=False)(image)


def test_keypoints_are_kept_beside(image):
    points = [20.0, 20, 2, 30, 30, 0]
    image["annotations"] = [
        annotation(POLYGON, keypoints=list(points)),
        annotation(None, keypoints=list(points)),
    ]
    instances = mapper(use_keypoint=True)(copy.deepcopy(image))["instances"]
    assert instances.gt_keypoints.tensor.shape == (2, 2, 3)
    assert not mapper()(image)["instances"].has("gt_keypoints")


def test_rle_with_polygon_format_says_what_to_set(image):
    image["annotations"] = [annotation(rle(disk(30, 30, 10)))]
    with pytest.raises(
        ValueError, match=r"image.png .* RLE, but INPUT.MASK_FORMAT is 'polygon': use 'bitmask'"
    ):
        mapper("polygon")(image)


@pytest.mark.parametrize("roi_heads", ["StandardROIHeads", "PartiallySupervisedROIHeads"])
def test_roi_heads_that_need_every_mask_are_not_given_empty_ones(image, roi_heads):
    cfg = tiny.model_config(
        *("MODEL.ROI_HEADS.NAME", roi_heads, "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead")
    )
    image["annotations"] = [annotation(POLYGON), annotation(None)]
    from_config = PartiallySupervisedMapper(cfg, is_train=True)
    if roi_heads == "PartiallySupervisedROIHeads":
        assert len(from_config(image)["instances"]) == 2
    else:
        with pytest.raises(ValueError, match=r"image.png has 1 annotations without segmentation"):
            from_config(image)


def test_pixels_that_detectron2_would_clip_are_refused(image):
    Image.fromarray(np.full((160, 160), 300, np.uint16)).save(image["file_name"])
    image["annotations"] = []
    with pytest.raises(ValueError, match=r"image.png cannot be .*: its pixels have 16 bits, expected 8"):
        mapper()(image)


def test_images_above_the_limit_of_the_config_are_refused(image):
    cfg = tiny.model_config("INPUT.MAX_MEGAPIXELS", 0.02)
    image["annotations"] = []
    with pytest.raises(ValueError, match=r"image.png cannot be .*: it has 160 x 160 pixels, expected"):
        PartiallySupervisedMapper(cfg)(image)
    PartiallySupervisedMapper(tiny.model_config())(image)


@pytest.mark.parametrize("length", [1, 5, -1])
def test_rle_that_is_cut_off_is_refused_whoever_read_the_annotations(image, length):
    whole = rle(disk(80, 80, 30))
    image["annotations"] = [annotation({**whole, "counts": whole["counts"][:length]})]
    with pytest.raises(ValueError, match=r"an annotation of .*image.png has (compressed )?RLE"):
        mapper()(image)


KEYPOINTS = [None, [], [1, 2], "abc", [1, 2, "x"], [[1, 2, 2]], [1, 2, 2, 3, 4, 2]]


@pytest.mark.parametrize("keypoints", KEYPOINTS)
@pytest.mark.parametrize("masks", [True, False])
def test_keypoints_of_another_form_are_named_where_the_model_has_any(image, keypoints, masks):
    MetadataCatalog.get("one keypoint").set(keypoint_names=["nose"], keypoint_flip_map=[])
    try:
        cfg = tiny.model_config(
            *(
                "MODEL.KEYPOINT_ON",
                True,
                "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS",
                1,
                "MODEL.MASK_ON",
                masks,
            ),
            *("INPUT.RANDOM_FLIP", "none", "DATASETS.TRAIN", ("one keypoint",)),
        )
        with_keypoints = PartiallySupervisedMapper(cfg)
    finally:
        MetadataCatalog.remove("one keypoint")
    image["annotations"] = [annotation(POLYGON, keypoints=[1, 2, 2])]
    assert with_keypoints(dict(image))["instances"].gt_keypoints.tensor.shape == (1, 1, 3)
    image["annotations"] = [annotation(POLYGON, keypoints=keypoints)]
    message = r"image.png has an annotation with the keypoints .*, expected x, y and visibility of"
    with pytest.raises(ValueError, match=message):
        with_keypoints(dict(image))
    image["annotations"] = [annotation(POLYGON, keypoints=keypoints)]
    assert len(mapper()(image)["instances"]) == 1  # nobody asks for them
