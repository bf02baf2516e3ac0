import pytest
import torch

from maskx_d2.method import Schedule
from maskx_d2.recipes.roi_cache import fill_cache
from maskx_d2.recipes.training import train_mask_head
from tests.recipes.tiny import AGNOSTIC, SUPERVISED

SHORT = Schedule(steps=6, images=4, rois=4)


@pytest.fixture(scope="module")
def cache(detector, annotated, tmp_path_factory):
    return fill_cache(tmp_path_factory.mktemp("cache") / "c", detector, annotated.images, sides=[14])


def train(detector, cache, recipe, hidden=(), seed=0, schedule=SHORT):
    return train_mask_head(detector, cache, recipe, hidden=hidden, schedule=schedule, seed=seed)


def state(head):
    return {n: p.detach().clone() for n, p in head.named_parameters() if p.requires_grad}


def test_masks_are_learned_from_cached_rois(detector, cache):
    def error(head):
        errors = []
        for image in range(20):
            rois = cache.rois(image, mirrored=False)
            chosen = rois[rois.has_mask]
            with torch.no_grad():
                logits = head(chosen.features[14].float(), chosen.classes)
            errors.append((logits.sigmoid() - chosen.masks[28] / 255).abs().mean())
        return float(torch.stack(errors).nanmean())

    schedule = Schedule(steps=150, images=4, rois=4, learning_rate=0.02)
    trained = train(detector, cache, AGNOSTIC, schedule=schedule)
    assert error(trained) < 0.85 * error(train(detector, cache, AGNOSTIC, schedule=Schedule(steps=1)))


def test_only_the_mask_head_changes(detector, cache):
    before = detector.fingerprint()
    head = train(detector, cache, SUPERVISED)
    assert detector.fingerprint() == before
    shared = {n: v for n, v in head.model.state_dict().items() if not n.startswith("roi_heads.mask_")}
    for name, value in detector.model.state_dict().items():
        assert torch.equal(shared[name], value)


def test_the_same_seed_gives_the_same_head(detector, cache):
    first, second = (state(train(detector, cache, SUPERVISED, hidden=[0, 1])) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = state(train(detector, cache, SUPERVISED, hidden=[0, 1], seed=1))
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("recipe", [AGNOSTIC, SUPERVISED], ids=["masks", "masks and boxes"])
def test_masks_of_hidden_classes_change_nothing(detector, cache, recipe, monkeypatch):
    """The head is the same if the masks of hidden classes are something else."""
    hidden = [0, 3, 5, 9, 12]
    expected = state(train(detector, cache, recipe, hidden=hidden))
    read = type(cache).rois

    def with_other_masks(self, image, *, mirrored):
        rois = read(self, image, mirrored=mirrored)
        masks, others = rois.masks[28].clone(), rois.others[28].clone()
        masks[torch.isin(rois.classes, torch.tensor(hidden))] = 255
        others[torch.isin(others.long(), torch.tensor(hidden))] = -1
        return type(rois)(**{**vars(rois), "masks": {28: masks}, "others": {28: others}})

    monkeypatch.setattr(type(cache), "rois", with_other_masks)
    found = state(train(detector, cache, recipe, hidden=hidden))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_box_losses_change_the_head(detector, cache):
    from dataclasses import replace

    without = replace(SUPERVISED, box_supervision={})
    schedule = Schedule(steps=10, images=4, rois=4)
    a, b = (
        state(train(detector, cache, r, hidden=range(16), schedule=schedule)) for r in (SUPERVISED, without)
    )
    assert not all(torch.equal(a[name], b[name]) for name in a)


def test_a_loss_that_is_not_finite_is_named(detector, cache, monkeypatch):
    monkeypatch.setattr("maskx_d2.recipes.training.mask_loss", lambda x, y: x.sum() * float("nan"))
    with pytest.raises(FloatingPointError, match=r"the loss of class-agnostic is not finite at step 0"):
        train(detector, cache, AGNOSTIC)
