import pytest
import torch
from torch import nn

from maskx_d2.inference.precision import PRECISIONS, Autocast


def test_an_unknown_precision_is_named():
    with pytest.raises(ValueError, match=r"precision is 'int8', expected one of fp32, bf16, fp16"):
        Autocast(nn.Linear(2, 2), "int8")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_computes_in_its_precision(precision):
    model = nn.Linear(2, 2)
    with Autocast(model, precision).on(torch.device("cpu")):
        assert model(torch.zeros(1, 2)).dtype == PRECISIONS[precision]
    assert model.weight.dtype == torch.float32
