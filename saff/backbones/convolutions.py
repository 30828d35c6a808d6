"""Convolutions for inference: what follows one is computed with it, in one pass over its output.

On CPUs torch hands a 1x1 convolution of a single image to a plain matrix product, which copies it
twice, and reads every output again for its activation.  oneDNN, which torch comes with, does both
at once and is called directly where torch was built with it; elsewhere, on GPUs and in converted
networks the same layers are torch's own.
"""

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

Activation = Literal["none", "relu", "relu6"]
CALLS: dict[str, tuple[str, list[float]]] = {  # what oneDNN calls them, with their bounds
    "none": ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
}
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(  # type: ignore[no-untyped-call]
    torch.ops.mkldnn, "_convolution_pointwise"
)


class FusedConv2d(nn.Module):
    """A convolution, its normalisation, what is added to it and its activation.

    Parameters
    ----------
    convolution : torch.nn.Conv2d
        Zero-padded by the same number of pixels on opposite sides.  It becomes a part of the layer.
    norm : torch.nn.BatchNorm2d, optional
        In evaluation mode; it is folded into the weights.
    activation : {"none", "relu", "relu6"}
        What is applied last.
    """

    def __init__(
        self,
        convolution: nn.Conv2d,
        norm: nn.BatchNorm2d | None = None,
        activation: Activation = "none",
    ) -> None:
        super().__init__()
        if norm is not None:
            convolution.weight, convolution.bias = fuse_conv_bn_weights(
                convolution.weight,
                convolution.bias,
                cast(Tensor, norm.running_mean),
                cast(Tensor, norm.running_var),
                norm.eps,
                norm.weight,
                norm.bias,
            )
        self.convolution = convolution
        self.activation = activation

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """Convolve, add ``plus`` where it is given, and activate."""
        if HAS_ONEDNN and x.device.type == "cpu" and not torch.compiler.is_exporting():
            return self._in_one_pass(x, plus)
        y = self.convolution(x)
        return self._activate(y if plus is None else y + plus)

    def _activate(self, y: Tensor) -> Tensor:
        if self.activation == "relu6":
            return functional.relu6(y)
        return functional.relu(y) if self.activation == "relu" else y

    def _in_one_pass(self, x: Tensor, plus: Tensor | None) -> Tensor:
        """The same by oneDNN, through the operators that torch's compiler uses."""
        layer, name = self.convolution, self.activation
        operands = x, layer.weight, layer.bias
        shape = layer.padding, layer.stride, layer.dilation, layer.groups
        convolve = torch.ops.mkldnn._convolution_pointwise
        if plus is None:
            return cast(Tensor, convolve(*operands, *shape, *CALLS[name], ""))
        y = convolve.binary(x, plus, *operands[1:], *shape, "add", None, None, [], None)
        return self._activate(y)
