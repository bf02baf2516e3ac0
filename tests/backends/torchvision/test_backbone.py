"""Backbones of timm under torchvision's FPN, and weights of backbones from files."""

import pytest
import torch
import torchvision
from torch import nn

from maskx_d2.backends.torchvision.backbone import TimmBackbone
from maskx_d2.backends.torchvision.training import TrainingModule
from maskx_d2.runtime.checkpoints import write_checkpoint
from tests.backends.torchvision.tiny import MODEL, build, images, losses, target

timm = pytest.importorskip("timm", reason="needs timm, which is not installed")

NAME = "tf_efficientnet_lite0"
TIMM = {"norm": None, "backbone": NAME, "image_mean": None}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with random weights, as timm saves those of a classifier."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "classifier.pth"
    torch.save(timm.create_model(NAME).state_dict(), path)
    return path


@pytest.mark.parametrize("name", [NAME, "resnet18", "convnext_atto"])
def test_models_of_timm_train_and_detect(name):
    model = build(**{**TIMM, "backbone": name})
    values = losses(model, [target([1, 2], [True, True]), target([3], [True])])
    assert all(torch.isfinite(loss) for loss in values.values())
    sum(values.values()).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.backbone.body.parameters())
    with torch.no_grad():
        (found,) = model.eval()(images(1))
    assert found["masks"].shape[1:] == (1, 64, 64)


def test_levels_are_the_features_of_timm_at_strides_4_to_32():
    model = build(**TIMM)
    assert isinstance(model.backbone, TimmBackbone)
    model.eval()
    pixels = torch.rand(1, 3, 96, 64)
    expected = timm.create_model(NAME, features_only=True, out_indices=[1, 2, 3, 4]).eval()
    expected.load_state_dict(model.backbone.body.state_dict())
    levels = model.backbone.body(pixels)
    assert [pixels.shape[-1] // level.shape[-1] for level in levels] == [4, 8, 16, 32]
    for level, other in zip(levels, expected(pixels), strict=True):
        torch.testing.assert_close(level, other, atol=1e-4, rtol=1e-4)
    assert list(model.backbone(pixels)) == ["0", "1", "2", "3", "pool"]


def test_images_are_normalised_as_for_the_model_unless_told_otherwise():
    assert build(**TIMM).transform.image_mean == [0.5, 0.5, 0.5]
    resnet = build(**{**TIMM, "backbone": "resnet18"})
    assert resnet.transform.image_std == pytest.approx([0.229, 0.224, 0.225])
    assert build(**{**TIMM, "image_mean": [0.1, 0.2, 0.3]}).transform.image_mean == [0.1, 0.2, 0.3]


def test_weights_of_a_file_are_those_of_timm(weights):
    model = build(**TIMM, backbone_weights=str(weights))
    expected = torch.load(weights)
    for name, value in model.backbone.body.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_weights_in_safetensors_are_read(weights, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "weights.safetensors"
    save_file(torch.load(weights), path)
    model = build(**TIMM, backbone_weights=str(path))
    torch.testing.assert_close(
        model.backbone.body.state_dict()["conv_stem.weight"], torch.load(weights)["conv_stem.weight"]
    )


def test_a_pretrained_backbone_has_frozen_statistics_and_first_layers(weights):
    model = build(**TIMM, backbone_weights=str(weights))
    kinds = {type(module).__name__ for module in model.backbone.body.modules()}
    assert not any(kind.startswith("BatchNorm") for kind in kinds)
    trained = {name for name, p in model.backbone.body.named_parameters() if p.requires_grad}
    assert trained == {
        name
        for name, _ in model.backbone.body.named_parameters()
        if name.startswith(("blocks.2", "blocks.3", "blocks.4", "blocks.5", "blocks.6"))
    }
    assert not any(
        p.requires_grad
        for p in build(
            **TIMM, backbone_weights=str(weights), trainable_backbone_layers=0
        ).backbone.body.parameters()
    )


def test_a_random_backbone_is_trained_with_batch_norm():
    model = build(**TIMM)
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.backbone.body.modules())
    assert all(p.requires_grad for p in model.backbone.body.parameters())


def test_weights_of_a_resnet_are_read_from_a_file(tmp_path):
    torch.manual_seed(5)
    state = torchvision.models.resnet18().state_dict()
    torch.save(state, tmp_path / "resnet18.pth")
    model = build(norm=None, backbone_weights=str(tmp_path / "resnet18.pth"))
    torch.testing.assert_close(model.backbone.body.state_dict()["conv1.weight"], state["conv1.weight"])


def test_a_checkpoint_has_its_weights_and_needs_no_others(weights, tmp_path):
    module = TrainingModule(
        class_names=["a", "b"],
        category_ids=[1, 2],
        classes_with_masks=[0],
        **{**MODEL, **TIMM},
        backbone_weights=str(weights),
    )
    path = tmp_path / "model.ckpt"
    write_checkpoint(
        path, {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams), "x": 1}
    )
    weights_moved = TrainingModule.from_checkpoint(path)
    assert weights_moved.hparams.backbone_weights is None
    for name, value in module.state_dict().items():
        torch.testing.assert_close(weights_moved.state_dict()[name], value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"backbone": "resnet18x"},
            r"backbone is 'resnet18x', which timm does not have, expected .*resnet18",
        ),
        ({"backbone": "vit_tiny_patch16_224"}, r"with features at strides 16.*expected 4, 8, 16, 32"),
        ({"backbone": "swin_tiny_patch4_window7_224"}, r"takes images of 224 x 224 only"),
        ({"norm": "GN"}, r"norm of backbone tf_efficientnet_lite0 is 'GN'"),
        (
            {"weights_backbone": "IMAGENET1K_V1"},
            r"weights_backbone is 'IMAGENET1K_V1', expected one of 'DEF",
        ),
        ({"backbone_weights": "absent.pth"}, r"absent.pth is not a file"),
        (
            {"backbone_weights": "a.pth", "weights_backbone": "DEFAULT"},
            r"expected only one of them",
        ),
    ],
)
def test_what_cannot_be_a_backbone_is_named(options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build(**{**TIMM, **options})


def test_weights_of_another_model_are_refused(tmp_path):
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"backbone_weights .*other.pth"):
        build(**TIMM, backbone_weights=str(tmp_path / "other.pth"))


def test_without_a_network_the_missing_weights_are_named(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    with pytest.raises(ValueError, match=r"cannot be downloaded \(no route to host\): give a file"):
        build(**TIMM, weights_backbone="DEFAULT")
