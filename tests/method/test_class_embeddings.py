import copy
import functools

import pytest
import torch

from maskx_d2.method import BoxPredictorEmbeddings, BoxPredictorWeights, FixedEmbeddings, box_embedding_dim

K, F = 5, 3


def read(cls, box):
    return BoxPredictorWeights(cls=cls, box=box)


@pytest.fixture
def weights():
    cls = torch.randn(K, F, requires_grad=True)
    regression = torch.randn(K, 4, F, requires_grad=True)  # four rows (dx, dy, dw, dh) a class
    return cls, regression


@pytest.mark.parametrize("kind", ["cls", "box", "cls+box"])
def test_embedding_of_a_class_is_its_rows_laid_end_to_end(kind, weights):
    cls, regression = weights
    embeddings = BoxPredictorEmbeddings(kind)
    embeddings.connect(lambda: read(cls, regression.reshape(K, -1)))
    table = embeddings()
    assert table.shape == (K, box_embedding_dim(kind, F))
    for c in range(K):
        parts = {"cls": [cls[c]], "box": list(regression[c])}
        expected = torch.cat([row for part in kind.split("+") for row in parts[part]])
        assert torch.equal(table[c], expected)


@pytest.mark.parametrize("kind", ["cls", "box", "cls+box"])
def test_embeddings_of_some_classes_are_rows_of_the_table(kind, weights):
    cls, regression = weights
    embeddings = BoxPredictorEmbeddings(kind)
    embeddings.connect(lambda: read(cls, regression.reshape(K, -1)))
    some = torch.tensor([4, 0, 4])
    assert torch.equal(embeddings(some), embeddings()[some])


def test_stop_grad_cuts_the_gradient_to_the_box_predictor(weights):
    cls, regression = weights
    for stop_grad in (True, False):
        embeddings = BoxPredictorEmbeddings(stop_grad=stop_grad)
        embeddings.connect(lambda: read(cls, regression.reshape(K, -1)))
        assert embeddings().requires_grad is not stop_grad


def test_a_copied_model_reads_its_own_box_predictor():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.box = torch.nn.Linear(F, K)
            self.embeddings = BoxPredictorEmbeddings("cls")
            self.embeddings.connect(functools.partial(_weights_of, self.box))

    model = Model()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.box.weight.zero_()
    assert other.embeddings().abs().sum() == 0
    assert model.embeddings().abs().sum() > 0


def _weights_of(linear):
    return read(linear.weight, None)


def test_embeddings_need_a_connected_box_predictor():
    with pytest.raises(ValueError, match="'cls\\+box' are read from a box predictor, and none is"):
        BoxPredictorEmbeddings()()


@pytest.mark.parametrize("kind", ["box", "cls+box"])
def test_class_agnostic_regression_has_no_box_embeddings(kind):
    embeddings = BoxPredictorEmbeddings(kind)
    embeddings.connect(lambda: read(torch.randn(K, F), None))
    with pytest.raises(ValueError, match="class-specific box regression"):
        embeddings()


def test_unknown_kind_is_an_error_that_names_those_there_are():
    with pytest.raises(ValueError, match=r"'cls', 'box', 'cls\+box'.*found 'both'"):
        BoxPredictorEmbeddings("both")


def test_fixed_embeddings_are_a_buffer_and_not_trained():
    table = torch.randn(K, 7)
    embeddings = FixedEmbeddings(table)
    assert torch.equal(embeddings(torch.tensor([2, 2])), table[[2, 2]])
    assert list(embeddings.parameters()) == []
    assert torch.equal(embeddings.state_dict()["table"], table)


@pytest.mark.parametrize("table", [torch.zeros(3), torch.zeros(3, 2, dtype=torch.int64)])
def test_fixed_embeddings_must_be_a_floating_point_matrix(table):
    with pytest.raises(ValueError, match="must be a \\(K, D\\) floating-point tensor"):
        FixedEmbeddings(table)
