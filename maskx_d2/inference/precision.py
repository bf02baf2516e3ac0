"""Inference in half precision."""

import torch
from torch import nn

from maskx_d2.data.errors import InputError
from maskx_d2.method import MLPBranch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str) -> None:
    """
    Raises:
        InputError: it is not a key of :data:`PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}")


class Autocast:
    """Runs a model in a precision: operations for which it is safe are in half precision, as in AMP."""

    def __init__(self, model: nn.Module, precision: str = "fp32"):
        """
        Args:
            model: the model. Weights of MLP branches are converted: 157 million of them in the paper's
                form take longer to convert in each call than to use.
            precision: key of :data:`PRECISIONS`.
        """
        check_precision(precision)
        self._dtype = PRECISIONS[precision]
        for module in model.modules():
            if isinstance(module, MLPBranch):
                module.to(self._dtype)

    def on(self, device: torch.device) -> torch.autocast:
        """A context in which the model is called."""
        return torch.autocast(device.type, self._dtype, enabled=self._dtype != torch.float32)
