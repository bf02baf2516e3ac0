"""The weight transfer function T: from class embeddings to mask weights."""

from torch import Tensor, nn

ACTIVATIONS = ("leaky_relu", "relu")


class WeightTransfer(nn.Sequential):
    """
    ``w_seg^c = T(w_det^c; theta)``: one small network, shared by all classes, that predicts a class's
    mask weights from its class embedding (section 3.1 of the paper).

    It has linear layers with an activation between them, He initialisation by fan-out (Caffe2's MSRAFill)
    and zero biases, as in the original code. The predicted 1x1 convolution has no bias.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int = 256,
        hidden_dim: int = 256,
        num_layers: int = 2,
        activation: str = "leaky_relu",
    ):
        """
        Args:
            in_dim: D, the width of the class embeddings.
            out_dim: C, the channels of the feature that the mask weights are applied to.
            hidden_dim: width of the hidden layers.
            num_layers: 1, 2 (the paper's choice) or 3 linear layers.
            activation: ``"leaky_relu"`` (slope 0.1, the paper's choice) or ``"relu"``.
        """
        if num_layers not in (1, 2, 3):
            raise ValueError(f"num_layers of the weight transfer must be 1, 2 or 3, found {num_layers}")
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation of the weight transfer must be one of {ACTIVATIONS}, found {activation!r}"
            )
        widths = [in_dim] + [hidden_dim] * (num_layers - 1) + [out_dim]
        layers: list[nn.Module] = []
        for i in range(num_layers):
            if i > 0:
                layers.append(nn.LeakyReLU(0.1) if activation == "leaky_relu" else nn.ReLU())
            layers.append(nn.Linear(widths[i], widths[i + 1]))
        super().__init__(*layers)
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, class_embeddings: Tensor) -> Tensor:
        """(U, D) class embeddings -> (U, C) mask weights, for any number U of classes."""
        return super().forward(class_embeddings)
