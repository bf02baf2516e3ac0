import copy

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import build_mask_head

from maskx_d2.backends.detectron2.mask_head import MaskXHead, read_embedding_table
from maskx_d2.method import build_mask_predictor

from ...method import naive
from . import tiny

HEAD = "roi_heads.mask_head."
K = tiny.NUM_CLASSES


def mask_parameters(model):
    return {n: p for n, p in model.named_parameters() if n.startswith(HEAD)}


@pytest.mark.parametrize("kind", ["cls", "box", "cls+box"])
def test_mask_weights_come_from_the_foreground_rows_of_the_box_predictor(kind):
    model = tiny.build(tiny.model_config("MODEL.ROI_MASK_HEAD.CLASS_EMBEDDING", kind)).double()
    box_predictor = model.roi_heads.box_predictor
    cls, box = box_predictor.cls_score.weight, box_predictor.bbox_pred.weight
    assert (len(cls), len(box)) == (K + 1, 4 * K)
    parts = {"cls": [cls[c] for c in range(K)], "box": [box[4 * c : 4 * c + 4].flatten() for c in range(K)]}
    embeddings = torch.stack([torch.cat([parts[p][c] for p in kind.split("+")]) for c in range(K)])
    predictor = model.roi_heads.mask_head.predictor
    layers = [(m.weight, m.bias) for m in predictor.transfer if hasattr(m, "weight")]
    expected = naive.transfer(embeddings, layers, "leaky_relu")
    torch.testing.assert_close(predictor.eval().all_class_weights(), expected)


def test_a_copied_model_reads_its_own_box_predictor():
    model = tiny.build(tiny.model_config()).eval()
    before = model.roi_heads.mask_head.predictor.all_class_weights()
    other = copy.deepcopy(model)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.mul_(2)
    assert torch.equal(other.roi_heads.mask_head.predictor.all_class_weights(), before)
    assert not torch.equal(model.roi_heads.mask_head.predictor.all_class_weights(), before)


@pytest.mark.parametrize("stop_grad", [True, False])
def test_stop_grad_keeps_the_mask_loss_off_the_box_predictor(stop_grad):
    model = tiny.build(tiny.model_config("MODEL.ROI_MASK_HEAD.STOP_GRAD", stop_grad))
    inputs = tiny.batch(tiny.instances([0, 1], [True, True]), tiny.instances([2], [True]))
    found = tiny.gradients(model, tiny.losses(model, inputs)["loss_mask"])
    for layer in ("cls_score", "bbox_pred"):
        gradient = found[f"roi_heads.box_predictor.{layer}.weight"]
        # Exactly zero: the mask loss does not reach it at all.
        assert (gradient is None) if stop_grad else (gradient.abs().sum() > 0)
    for name in mask_parameters(model):
        if "transfer" in name:
            assert found[name].abs().sum() > 0, name


@pytest.mark.parametrize("predictor", ["transfer", "agnostic", "class_specific"])
@pytest.mark.parametrize("norm", ["", "GN", "BN"])
def test_a_batch_without_any_mask_gives_every_mask_parameter_a_zero_gradient(predictor, norm):
    model = tiny.build(
        tiny.model_config(
            *("MODEL.ROI_MASK_HEAD.MASKX_PREDICTOR", predictor),
            *("MODEL.ROI_MASK_HEAD.NORM", norm, "MODEL.ROI_MASK_HEAD.CONV_DIM", 32),
        )
    )
    boxes_only = tiny.instances([0, 1], [False, False])
    for inputs in (tiny.batch(boxes_only, boxes_only), tiny.batch(boxes_only, tiny.instances([]))):
        losses = tiny.losses(model, inputs)
        assert losses["loss_mask"].item() == 0
        found = tiny.gradients(model, sum(losses.values()))
        for name in mask_parameters(model):
            assert found[name] is not None and found[name].abs().sum() == 0, name
        assert all(torch.isfinite(b).all() for b in model.roi_heads.mask_head.buffers())
        # The box losses see the instances without masks.
        assert found["roi_heads.box_predictor.bbox_pred.weight"].abs().sum() > 0


def test_trunk_parameters_have_the_stock_names_and_shapes():
    ours, stock = (
        tiny.build(tiny.model_config("MODEL.ROI_MASK_HEAD.NAME", name)).roi_heads.mask_head.state_dict()
        for name in ("MaskXHead", "MaskRCNNConvUpsampleHead")
    )
    trunk = {name: value.shape for name, value in stock.items() if not name.startswith("predictor.")}
    assert len(trunk) == 6
    assert trunk == {n: v.shape for n, v in ours.items() if not n.startswith("predictor.")}


def test_a_stock_checkpoint_loads_and_what_is_new_or_left_out_is_listed(tmp_path, caplog):
    stock = tiny.build(
        tiny.model_config(
            *("MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
            *("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
        ),
        seed=1,
    )
    DetectionCheckpointer(stock, str(tmp_path)).save("stock")
    model = tiny.build(tiny.model_config(), seed=2)
    with caplog.at_level("INFO"):
        DetectionCheckpointer(model).load(str(tmp_path / "stock.pth"))
    ours, theirs = model.state_dict(), stock.state_dict()
    common = set(ours) & set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in common)
    assert {n.removeprefix(HEAD).split(".")[0] for n in set(ours) ^ set(theirs)} == {"predictor"}
    for name in ("transfer", "mlp_branch"):
        assert f"{HEAD}predictor.{name}" in caplog.text
    assert "not used by the model" in caplog.text


def test_inference_masks_are_the_sigmoid_of_the_formula():
    model = tiny.build(tiny.model_config()).eval()
    head = model.roi_heads.mask_head
    features = torch.randn(3, 16, 14, 14)
    detected = tiny.instances([2, 0, 2])
    detected.pred_classes = detected.gt_classes
    with torch.no_grad():
        (out,) = head(features, [detected])
        x = head.conv_norm_relus[1](head.conv_norm_relus[0](features))
        branch = head.predictor.mlp_branch(x)
        x = torch.relu(head.deconv(x)).double()
        weights = head.predictor.all_class_weights().double()
        logits = naive.pick(naive.all_class_logits(x, weights), detected.pred_classes) + branch
    assert out.pred_masks.shape == (3, 1, 28, 28)
    torch.testing.assert_close(out.pred_masks[:, 0], (1 / (1 + torch.exp(-logits))).float())


def test_statistics_and_pictures_are_logged_as_by_the_stock_head():
    model = tiny.build(tiny.model_config()).train()
    model.roi_heads.mask_head.vis_period = 1
    with tiny.storage() as events:
        model(tiny.batch(tiny.instances([0, 1], [True, False])))
    for name in ("accuracy", "false_positive", "false_negative"):
        assert 0 <= events.history(f"mask_rcnn/{name}").latest() <= 1
    assert any(name.startswith("Left: mask prediction") for name, *_ in events._vis_data)


def test_head_in_other_roi_heads_says_what_is_missing():
    with pytest.raises(ValueError, match="'StandardROIHeads', expected 'PartiallySupervisedROIHeads'"):
        tiny.build(tiny.model_config("MODEL.ROI_HEADS.NAME", "StandardROIHeads"))
    model = tiny.build(tiny.model_config())
    # As by explicit arguments to ROI heads that connect nothing.
    model.roi_heads.mask_head.predictor.class_embeddings.connect(None)
    with pytest.raises(ValueError, match="are read from a box predictor, and none is connected"):
        tiny.losses(model, tiny.batch(tiny.instances([0])))


def test_head_needs_a_pooler():
    with pytest.raises(ValueError, match="POOLER_TYPE is '', but MaskXHead needs a pooler"):
        tiny.build(tiny.model_config("MODEL.ROI_MASK_HEAD.POOLER_TYPE", ""))


def test_a_box_head_without_fully_connected_layers_gives_wide_embeddings():
    model = tiny.build(tiny.model_config("MODEL.ROI_BOX_HEAD.NUM_FC", 0, "MODEL.ROI_BOX_HEAD.NUM_CONV", 1))
    assert model.roi_heads.mask_head.predictor.transfer[0].in_features == 5 * 256 * 7 * 7


def test_forward_under_autocast_is_close_to_float32():
    model = tiny.build(tiny.model_config())
    inputs = tiny.batch(tiny.instances([0, 1], [True, False]))
    expected = tiny.losses(model, inputs)["loss_mask"]
    with torch.autocast("cpu", torch.bfloat16):
        loss = tiny.losses(model, inputs)["loss_mask"]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0)
    loss.backward()


# ---- CLASS_EMBEDDING "file" ----


def file_config(path):
    return tiny.model_config(
        *("MODEL.ROI_MASK_HEAD.CLASS_EMBEDDING", "file"),
        *("MODEL.ROI_MASK_HEAD.CLASS_EMBEDDING_FILE", str(path)),
    )


def test_a_fixed_table_is_a_buffer_that_training_leaves_alone(tmp_path):
    table = np.random.default_rng(0).normal(size=(K, 300))
    np.save(tmp_path / "table.npy", table)
    model = tiny.build(file_config(tmp_path / "table.npy"))
    buffer = model.roi_heads.mask_head.predictor.class_embeddings.table
    np.testing.assert_array_equal(buffer.numpy(), table.astype(np.float32))
    found = tiny.gradients(model, sum(tiny.losses(model, tiny.batch(tiny.instances([0]))).values()))
    assert not any("class_embeddings" in name for name in found)


def test_errors_of_the_table_name_the_file_and_what_was_found(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"CLASS_EMBEDDING_FILE is .*absent.npy', which is not a file"
    ):
        tiny.build(file_config(tmp_path / "absent.npy"))
    np.save(tmp_path / "short.npy", np.zeros((3, 5)))
    with pytest.raises(ValueError, match=r"short.npy holds float64 of shape \(3, 5\).*\(4, D\)"):
        read_embedding_table(str(tmp_path / "short.npy"), K)
    np.save(tmp_path / "names.npy", np.array([["a"]] * K))
    with pytest.raises(ValueError, match=r"names.npy holds <U1 .* expected numbers"):
        read_embedding_table(str(tmp_path / "names.npy"), K)
    (tmp_path / "text.npy").write_text("no table")
    with pytest.raises(ValueError, match=r"text.npy is not a .npy file of numbers"):
        read_embedding_table(str(tmp_path / "text.npy"), K)
    np.save(tmp_path / "object.npy", np.array([{}] * K), allow_pickle=True)
    with pytest.raises(ValueError, match=r"object.npy is not a .npy file of numbers"):
        read_embedding_table(str(tmp_path / "object.npy"), K)


def test_a_table_takes_no_memory_that_its_file_does_not_have(tmp_path):
    header = str({"descr": "<f8", "fortran_order": False, "shape": (K, 2**37 // K)}).encode()
    header += b" " * (63 - (len(header) + 10) % 64) + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    (tmp_path / "large.npy").write_bytes(content + bytes(100))
    with pytest.raises(ValueError, match=r"large.npy is not a .npy file .*: mmap length is greater"):
        read_embedding_table(str(tmp_path / "large.npy"), K)
    np.savez_compressed(tmp_path / "table.npz", np.zeros((K, 5)))
    with pytest.raises(ValueError, match=r"table.npz holds several arrays, expected a .npy file with one"):
        read_embedding_table(str(tmp_path / "table.npz"), K)
    (tmp_path / "v9.npy").write_bytes(content.replace(b"\x01\x00", b"\x09\x00", 1))
    (tmp_path / "header.npy").write_bytes(b"\x93NUMPY\x02\x00\xff\xff\xff\xff{")
    for name in ("v9", "header"):
        with pytest.raises(ValueError, match=rf"{name}.npy is not a .npy file of numbers"):
            read_embedding_table(str(tmp_path / f"{name}.npy"), K)
    np.save(tmp_path / "nan.npy", np.full((K, 3), np.nan))
    with pytest.raises(ValueError, match=r"nan.npy has numbers that are NaN or infinite"):
        read_embedding_table(str(tmp_path / "nan.npy"), K)


# ---- Both ways to build ----


def test_yaml_and_lazy_config_build_the_same_head():
    shape = ShapeSpec(channels=16, height=14, width=14)
    from_yaml = build_mask_head(tiny.model_config(), shape)
    lazy = LazyCall(MaskXHead)(
        input_shape=LazyCall(ShapeSpec)(channels=16, height=14, width=14),
        predictor=LazyCall(build_mask_predictor)(
            num_classes=K,
            in_channels=8,
            mask_side=28,
            box_feature_dim=12,
            transfer_hidden_dim=8,
            mlp_reduced_channels=8,
        ),
        conv_dims=[8, 8, 8],
    )
    from_lazy = instantiate(lazy)
    assert isinstance(from_yaml, MaskXHead) and isinstance(from_lazy, MaskXHead)
    shapes = [{n: v.shape for n, v in head.state_dict().items()} for head in (from_yaml, from_lazy)]
    assert shapes[0] == shapes[1]


def test_a_box_predictor_of_another_width_is_an_error():
    shape = ShapeSpec(channels=16, height=14, width=14)
    head = build_mask_head(tiny.model_config("MODEL.ROI_BOX_HEAD.FC_DIM", 13), shape)
    box_predictor = tiny.build(tiny.model_config()).roi_heads.box_predictor
    with pytest.raises(ValueError, match=r"width 65, but those of the box predictor have width 60"):
        head.connect_box_predictor(box_predictor)


@pytest.mark.parametrize("predictor", ["transfer", "agnostic", "class_specific"])
def test_layers_returns_the_logits_of_all_classes_as_detectron2s_mask_head(predictor):
    model = tiny.build(tiny.model_config("MODEL.ROI_MASK_HEAD.MASKX_PREDICTOR", predictor)).eval()
    head, features = model.roi_heads.mask_head, torch.randn(3, 16, 14, 14)
    with torch.no_grad():
        logits = head.layers(features)
        num_classes = 1 if predictor == "agnostic" else tiny.NUM_CLASSES
        assert logits.shape == (3, num_classes, 28, 28)
        for index in range(num_classes):
            expected = head.mask_logits(features, torch.full((3,), index))
            torch.testing.assert_close(logits[:, index], expected)
