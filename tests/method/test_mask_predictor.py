import pytest
import torch

from maskx_d2.method import (
    BoxPredictorWeights,
    MLPBranch,
    build_mask_predictor,
    class_mask_logits,
    mask_loss,
    mask_predictor,
)

from ..largest_tensor import LargestTensor
from . import naive

C, M, F = 6, 8, 5
TRUNK = 4  # channels before the deconvolution


class Box:
    """A box predictor's weights for K classes."""

    def __init__(self, num_classes, dtype=torch.float64):
        self.cls = torch.randn(num_classes, F, dtype=dtype, requires_grad=True)
        self.box = torch.randn(num_classes, 4 * F, dtype=dtype, requires_grad=True)

    def weights(self):
        return BoxPredictorWeights(cls=self.cls, box=self.box)


def build(predictor, num_classes, box=None, **kwargs):
    kwargs = {"mlp_layers": 0, "box_feature_dim": F, "transfer_hidden_dim": 7, **kwargs}
    model = build_mask_predictor(
        predictor, num_classes=num_classes, in_channels=C, mask_side=M, trunk_channels=TRUNK, **kwargs
    ).double()
    if box is not None:
        model.class_embeddings.connect(box.weights)
    return model


def rois(classes):
    n = len(classes)
    return (
        torch.randn(n, C, M, M, dtype=torch.float64, requires_grad=True),
        torch.randn(n, TRUNK, M // 2, M // 2, dtype=torch.float64, requires_grad=True),
        torch.tensor(classes, dtype=torch.int64),
    )


def assert_same(out, expected, inputs):
    """Equal values, and equal gradients of a random projection."""
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)
    weight = torch.randn_like(out)
    grads = torch.autograd.grad((out * weight).sum(), inputs, allow_unused=True, retain_graph=True)
    want = torch.autograd.grad((expected * weight).sum(), inputs, allow_unused=True)
    for gradient, wanted, x in zip(grads, want, inputs, strict=True):
        zero = torch.zeros_like(x)
        torch.testing.assert_close(
            zero if gradient is None else gradient,
            zero if wanted is None else wanted,
            rtol=1e-10,
            atol=1e-10,
        )


CASES = [(1, [0, 0]), (1, []), (4, []), (4, [2]), (4, [3, 1, 3, 3, 0]), (9, [8, 8])]


@pytest.fixture(params=["_by_matrices", "_by_products"])
def on_a_device(request, monkeypatch):
    """As on a CPU, or as on a GPU with parts of two RoIs."""
    monkeypatch.setattr(mask_predictor, "_ROIS_AT_ONCE", 2)
    monkeypatch.setattr(mask_predictor, "_by_matrices", getattr(mask_predictor, request.param))


@pytest.mark.usefixtures("on_a_device")
@pytest.mark.parametrize(("num_classes", "classes"), CASES)
def test_gathered_logits_are_those_picked_out_of_all_classes(num_classes, classes):
    features, _, classes = rois(classes)
    weights = torch.randn(num_classes, C, dtype=torch.float64, requires_grad=True)
    expected = naive.pick(naive.all_class_logits(features, weights), classes)
    assert_same(class_mask_logits(features, weights[classes]), expected, [features, weights])


@pytest.mark.parametrize(("num_classes", "classes"), CASES)
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("activation", ["leaky_relu", "relu"])
@pytest.mark.parametrize("training", [True, False])
def test_transfer_predictor_is_the_formula(num_classes, classes, num_layers, activation, training):
    box = Box(num_classes)
    kwargs = {"transfer_layers": num_layers, "transfer_activation": activation, "stop_grad": False}
    model = build("transfer", num_classes, box, **kwargs).train(training)
    features, trunk, classes = rois(classes)
    layers = [(m.weight, m.bias) for m in model.transfer if hasattr(m, "weight")]
    weights = naive.transfer(torch.cat([box.cls, box.box], 1), layers, activation)
    expected = naive.pick(naive.all_class_logits(features, weights), classes)
    inputs = [features, box.cls, box.box, *model.parameters()]
    assert_same(model(features, classes, trunk), expected, inputs)


@pytest.mark.parametrize(("num_classes", "classes"), CASES)
def test_class_specific_and_agnostic_predictors_are_a_convolution(num_classes, classes):
    for predictor in ("class_specific", "agnostic"):
        model = build(predictor, num_classes)
        torch.nn.init.normal_(model.weight)
        torch.nn.init.normal_(model.bias)
        features, trunk, index = rois(classes)
        all_logits = torch.nn.functional.conv2d(features, model.weight, model.bias)
        expected = naive.pick(all_logits, torch.zeros_like(index) if predictor == "agnostic" else index)
        assert_same(model(features, index, trunk), expected, [features, model.weight, model.bias])


@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("reduced_channels", [0, 2])
def test_mlp_branch_is_the_formula(n, num_layers, reduced_channels):
    branch = MLPBranch(
        TRUNK, 4, M, num_layers=num_layers, hidden_dim=5, reduced_channels=reduced_channels
    ).double()
    for parameter in branch.parameters():
        torch.nn.init.normal_(parameter)
    features = torch.randn(n, TRUNK, 4, 4, dtype=torch.float64, requires_grad=True)
    x = features
    if reduced_channels:
        w, b = branch.reduce.weight[:, :, 0, 0], branch.reduce.bias
        x = (torch.einsum("ncij,oc->noij", x, w) + b[:, None, None]).clamp(min=0)
    expected = naive.mlp(x, [(m.weight, m.bias) for m in branch.layers], M)
    assert_same(branch(features), expected, [features, *branch.parameters()])


@pytest.mark.parametrize("predictor", ["transfer", "agnostic", "class_specific"])
@pytest.mark.parametrize("reduced_channels", [0, 2])
def test_mlp_branch_is_added_and_reads_the_right_feature(predictor, reduced_channels):
    box = Box(4) if predictor == "transfer" else None
    model = build(predictor, 4, box, mlp_layers=1, mlp_reduced_channels=reduced_channels)
    torch.nn.init.normal_(model.mlp_branch.layers[-1].weight)
    features, trunk, classes = rois([1, 3])
    with_branch = model(features, classes, trunk)
    added = model.mlp_branch(trunk if reduced_channels else features)
    model.mlp_branch = None
    torch.testing.assert_close(with_branch, model(features, classes, trunk) + added)


def test_full_mlp_branch_has_the_papers_size():
    with torch.device("meta"):
        model = build_mask_predictor(num_classes=80, in_channels=256, mask_side=28)
    (layer,) = model.mlp_branch.layers
    assert tuple(layer.weight.shape) == (784, 256 * 28 * 28)
    assert 157e6 < layer.weight.numel() < 158e6


def test_last_layer_of_the_mlp_branch_starts_small():
    branch = MLPBranch(8, 14, 28, num_layers=2)
    assert branch.layers[-1].weight.std().item() == pytest.approx(0.001, rel=0.02)
    assert all(layer.bias.abs().sum() == 0 for layer in branch.layers)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_of_the_size_of_all_classes_masks_is_allocated(training):
    n, k = 16, 500
    box = Box(k)
    model = build("transfer", k, box).train(training)
    features, trunk, classes = rois(torch.randint(k, (n,)).tolist())
    with LargestTensor() as largest:
        loss = mask_loss(model(features, classes, trunk), torch.zeros(n, M, M))
        if training:
            loss.backward()
    feature_size, table_size = n * C * M * M, k * 5 * F
    assert feature_size <= largest.numel <= max(feature_size, table_size) < n * k * M * M / 10
    # The meter does see such a tensor where there is one.
    with LargestTensor() as largest:
        torch.nn.functional.conv2d(features, torch.randn(k, C, 1, 1, dtype=torch.float64))
    assert largest.numel >= n * k * M * M


@pytest.mark.parametrize("predictor", ["transfer", "agnostic", "class_specific"])
@pytest.mark.parametrize("reduced_channels", [0, 2])
def test_without_rois_every_parameter_gets_a_zero_gradient(predictor, reduced_channels):
    box = Box(4) if predictor == "transfer" else None
    model = build(predictor, 4, box, mlp_layers=2, mlp_hidden_dim=3, mlp_reduced_channels=reduced_channels)
    features, trunk, classes = rois([])
    mask_loss(model(features, classes, trunk), torch.zeros(0, M, M)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() == 0, name


@pytest.mark.parametrize("stop_grad", [True, False])
def test_stop_grad_keeps_the_mask_loss_off_the_box_predictor(stop_grad):
    box = Box(4)
    model = build("transfer", 4, box, stop_grad=stop_grad)
    features, trunk, classes = rois([1, 2])
    mask_loss(model(features, classes, trunk), torch.ones(2, M, M)).backward()
    for weight in (box.cls, box.box):
        if stop_grad:
            assert weight.grad is None
        else:
            assert weight.grad[[1, 2]].abs().sum() > 0
            assert weight.grad[[0, 3]].abs().sum() == 0
    assert all(p.grad.abs().sum() > 0 for p in model.transfer.parameters())


# ---- The cache of T at inference ----


@torch.no_grad()
def test_t_runs_once_at_inference_whatever_the_batches_hold():
    model = build("transfer", 4, Box(4)).eval()
    runs = []
    model.transfer.register_forward_hook(lambda *_: runs.append(1))
    for classes in ([1], [3, 0], []):
        features, trunk, index = rois(classes)
        model(features, index, trunk)
    assert len(runs) == 1


def change_by_load(model, box):
    state = {k: torch.randn_like(v) for k, v in model.state_dict().items()}
    model.load_state_dict(state)


def change_by_train_step(model, box):
    optimizer = torch.optim.SGD([*model.parameters(), box.cls], lr=0.1)
    features, trunk, classes = rois([1, 2])
    with torch.enable_grad():
        model.train()
        mask_loss(model(features, classes, trunk), torch.ones(2, M, M)).backward()
    optimizer.step()
    model.eval()


def change_by_optimizer_step_in_eval_mode(model, box):
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(model.parameters(), lr=0.1).step()


def change_of_the_box_predictor(model, box):
    box.cls.add_(1)


def change_by_dtype_there_and_back(model, box):
    # The weights may come back to the addresses they had, without their last bits.
    model.half()
    model.double()


def change_by_data_then_eval(model, box):
    for parameter in model.parameters():
        parameter.data.mul_(2)
    model.eval()


@pytest.mark.parametrize(
    "change",
    [
        change_by_load,
        change_by_train_step,
        change_by_optimizer_step_in_eval_mode,
        change_of_the_box_predictor,
        change_by_dtype_there_and_back,
        change_by_data_then_eval,
    ],
)
@torch.no_grad()
def test_cache_is_dropped_when_weights_change(change):
    box = Box(4)
    model = build("transfer", 4, box).eval()
    before = model.all_class_weights().clone()
    change(model, box)
    after = model.all_class_weights()
    assert not torch.equal(after, before)
    assert torch.equal(after, model.transfer(torch.cat([box.cls, box.box], 1)))


@torch.no_grad()
def test_cache_follows_a_move_to_another_dtype():
    box = Box(4)
    model = build("transfer", 4, box).eval()
    model.all_class_weights()
    model.float()
    box.cls, box.box = box.cls.float(), box.box.float()
    assert model.all_class_weights().dtype == torch.float32


@torch.no_grad()
def test_cache_follows_a_move_to_another_device():
    box = Box(4)
    model = build("transfer", 4, box).eval()
    model.all_class_weights()
    model.to("meta")
    box.cls, box.box = box.cls.to("meta"), box.box.to("meta")
    assert model.all_class_weights().device.type == "meta"


def test_under_autocast_another_table_is_used():
    box = Box(4, torch.float32)
    model = build("transfer", 4, box).float().eval()
    with torch.no_grad():
        assert model.all_class_weights().dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            assert model.all_class_weights().dtype == torch.bfloat16
        assert model.all_class_weights().dtype == torch.float32


def test_gradients_flow_in_eval_mode_after_the_cache_was_filled():
    box = Box(4)
    model = build("transfer", 4, box).eval()
    features, trunk, classes = rois([1])
    with torch.inference_mode():
        model(features, classes, trunk)
    model(features, classes, trunk).sum().backward()
    assert model.transfer[0].weight.grad.abs().sum() > 0


def test_fixed_table_is_transferred():
    table = torch.randn(4, 3, dtype=torch.float64)
    model = build("transfer", 4, class_embedding="file", embedding_table=table)
    features, trunk, classes = rois([2, 0])
    layers = [(m.weight, m.bias) for m in model.transfer if hasattr(m, "weight")]
    expected = naive.pick(
        naive.all_class_logits(features, naive.transfer(table, layers, "leaky_relu")), classes
    )
    assert_same(model(features, classes, trunk), expected, [features, *model.parameters()])


def test_errors_name_what_was_found():
    with pytest.raises(ValueError, match=r"'transfer', 'agnostic', 'class_specific'.*found 'mlp'"):
        build("mlp", 4)
    with pytest.raises(ValueError, match=r"needs a table of \(4, D\), found none"):
        build("transfer", 4, class_embedding="file")
    with pytest.raises(ValueError, match=r"needs a table of \(4, D\), found \(5, 3\)"):
        build("transfer", 4, class_embedding="file", embedding_table=torch.randn(5, 3))
    with pytest.raises(ValueError, match="MLP branch must be 1, 2 or 3, found 4"):
        build("agnostic", 4, mlp_layers=4)


# ---- Embedding dropout ----


def test_dropout_zeroes_and_scales_the_embeddings_of_each_class_by_itself():
    """T without hidden layers shows what it is given: half of each row zero, the rest doubled."""
    torch.manual_seed(0)
    box = Box(3)
    model = build("transfer", 3, box, class_embedding="cls", transfer_layers=1, embedding_dropout=0.5)
    model.train()
    seen = []
    model.transfer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    for _ in range(200):
        model(*_swap(rois([2, 0, 2])))
    ratios = torch.stack(seen) / box.cls.detach()[[2, 0, 2]]
    is_zero = ratios == 0
    assert torch.allclose(ratios[~is_zero], torch.tensor(2.0, dtype=torch.float64))
    assert abs(is_zero.double().mean() - 0.5) < 0.05
    # A draw of its own for each class and each step.
    assert (is_zero[:, 0] != is_zero[:, 1]).any() and (is_zero[0] != is_zero[1]).any()


def test_rois_of_one_class_share_one_draw():
    model = build("transfer", 3, Box(3), class_embedding="cls", embedding_dropout=0.5).train()
    weights = model.class_weights(torch.tensor([1, 2, 1]))
    assert torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_is_for_training_alone_and_none_draws_no_random_numbers(dropout):
    box = Box(3)
    model = build("transfer", 3, box, class_embedding="cls", embedding_dropout=dropout)
    classes = torch.tensor([0, 1, 2])
    expected = model.transfer(box.cls)
    with torch.no_grad():
        torch.testing.assert_close(model.eval().class_weights(classes), expected)
    state = torch.get_rng_state()
    model.train().class_weights(classes)
    assert torch.equal(torch.get_rng_state(), state) is (dropout == 0)


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_shares_that_are_none_are_refused(dropout):
    with pytest.raises(ValueError, match=f"embedding_dropout is {dropout}, expected"):
        build("transfer", 3, embedding_dropout=dropout)


def _swap(inputs):
    features, trunk_features, classes = inputs
    return features, classes, trunk_features
