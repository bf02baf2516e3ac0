"""The cached RoIs against the product's own targets and features, computed for the same boxes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.ops import box_iou

from maskx_d2.backends.torchvision.frozen_detector import TorchvisionFrozenDetector
from maskx_d2.recipes.roi_cache import average_to_cells, fill_cache
from tests.recipes.tiny import write_detector


@pytest.fixture(scope="module")
def cache(detector, annotated, tmp_path_factory):
    return fill_cache(tmp_path_factory.mktemp("cache") / "c", detector, annotated.images[:40], sides=[14])


def test_rois_are_positive_proposals_and_true_boxes(cache, annotated):
    for number, image in enumerate(annotated.images[:40]):
        rois = cache.rois(number, mirrored=False)
        overlap = torch.diagonal(box_iou(rois.boxes, rois.true_boxes))
        assert (overlap >= 0.5).all()
        true_boxes = rois.boxes[rois.is_ground_truth]
        torch.testing.assert_close(true_boxes, torch.from_numpy(image.boxes)[: len(true_boxes)])
        assert set(rois.classes.tolist()) <= set(image.classes.tolist())
    assert any(len(cache.rois(n, mirrored=False)) > len(annotated.images[n].boxes) for n in range(40))


def test_features_are_those_that_the_detector_pools(cache, detector, annotated):
    rois = cache.rois(3, mirrored=False)
    expected = detector.see(annotated.images[3].read()).roi_features(rois.boxes, 14)
    torch.testing.assert_close(rois.features[14].float(), expected, atol=2e-3, rtol=2e-3)


def test_targets_are_those_of_torchvision(cache, annotated):
    compared = 0
    for number in range(40):
        image, rois = annotated.images[number], cache.rois(number, mirrored=False)
        for place in rois.has_mask.nonzero()[:, 0].tolist():
            index = int((torch.from_numpy(image.boxes) == rois.true_boxes[place]).all(1).nonzero()[0])
            mask = torch.from_numpy(image.mask(index))[None]
            expected = project_masks_on_boxes(mask, rois.boxes[[place]], torch.tensor([0]), 28)[0]
            # Torchvision's cells are shifted by half a pixel.
            difference = (rois.masks[28][place] / 255 - expected).abs().mean()
            assert difference < 0.06
            compared += 1
    assert compared > 20


def test_mirror_images_have_mirrored_targets_and_colours(cache, annotated):
    found = 0
    for number in range(40):
        rois, mirrored = (cache.rois(number, mirrored=m) for m in (False, True))
        width = annotated.images[number].width
        a, b = rois[rois.is_ground_truth], mirrored[mirrored.is_ground_truth]
        torch.testing.assert_close(a.boxes[:, 0], width - b.boxes[:, 2])
        for name in ("masks", "others", "colours"):
            assert torch.equal(getattr(a, name)[28].flip(-1), getattr(b, name)[28])
        found += int((a.others[28] >= 0).any())
    assert found > 0  # objects that overlap


def test_other_objects_cover_cells_with_their_class(cache, annotated):
    for number in range(40):
        image, rois = annotated.images[number], cache.rois(number, mirrored=False)
        classes = {int(c) for c, m in zip(image.classes, image.masks, strict=True) if m is not None}
        assert set(rois.others[28].unique().tolist()) <= classes | {-1}


def test_cells_are_means_over_their_pixels():
    generator = np.random.default_rng(0)
    plane = torch.from_numpy(generator.integers(0, 256, (2, 40, 60), dtype=np.uint8))
    box = torch.tensor([8.0, 4.0, 24.0, 36.0])
    cells = average_to_cells(plane, box, 4)
    expected = plane[:, 4:36, 8:24].double().reshape(2, 4, 8, 4, 4).mean((2, 4))
    torch.testing.assert_close(cells.double(), expected, atol=1e-3, rtol=0)


def test_an_interrupted_cache_is_completed(cache, detector, annotated, tmp_path):
    class Stop(Exception):
        pass

    def stop_after_one(files):
        yield files[0]
        raise Stop

    with pytest.raises(Stop):
        fill_cache(tmp_path, detector, annotated.images[:40], sides=[14], progress=stop_after_one)
    done = []
    again = fill_cache(
        tmp_path, detector, annotated.images[:40], sides=[14], progress=lambda f: done.extend(f) or f
    )
    assert done == [1]
    for number in (0, 39):
        assert torch.equal(again.rois(number, mirrored=True).boxes, cache.rois(number, mirrored=True).boxes)


def test_a_cache_of_another_detector_or_other_images_is_refused(annotated, detector, tmp_path):
    fill_cache(tmp_path, detector, annotated.images[:2], sides=[14])
    with pytest.raises(ValueError, match=r"is a cache of other images, expected that of the same run"):
        fill_cache(tmp_path, detector, annotated.images[:3], sides=[14])
    boxes_only = [replace(image, masks=[None] * len(image.masks)) for image in annotated.images[:2]]
    with pytest.raises(ValueError, match=r"is a cache of other annotations"):
        fill_cache(tmp_path, detector, boxes_only, sides=[14])
    categories = annotated.file.categories
    other = TorchvisionFrozenDetector(write_detector(tmp_path / "other.ckpt", categories, seed=1))
    with pytest.raises(ValueError, match=r"is a cache of other detector"):
        fill_cache(tmp_path, other, annotated.images[:2], sides=[14])
