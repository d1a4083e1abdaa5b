"""The layers of ``torch.nn`` that Lux has too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pynode.julia.lux_convert import Conversion, Converter, register_lux
from pynode.julia.lux_layers import LuxLayer, chain, elementwise, number


def _weights(module: Any) -> dict[str, Tensor]:
    return {name: x for name in ("weight", "bias") if (x := getattr(module, name)) is not None}


def _linear(module: nn.Linear, convert: Conversion) -> LuxLayer:
    bias = "" if module.bias is not None else "; use_bias = false"
    return LuxLayer(f"Dense({module.in_features} => {module.out_features}{bias})", _weights(module))


def _tuple(numbers: Sequence[int]) -> str:
    return f"({', '.join(map(str, numbers))}{',' * (len(numbers) == 1)})"


def _convolution(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, convert: Conversion) -> LuxLayer:
    if module.padding_mode != "zeros":
        raise convert.refuse(f"has padding_mode = {module.padding_mode!r}")
    # Each dimension's padding before and after, in the order of Julia's dimensions.
    if module.padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        around = [(n // 2, n - n // 2) for n in total]
    elif isinstance(module.padding, str):
        around = [(0, 0) for _ in module.kernel_size]
    else:
        around = [(n, n) for n in module.padding]
    options = [
        f"stride = {_tuple(module.stride[::-1])}",
        f"pad = {_tuple([n for pair in around[::-1] for n in pair])}",
        f"dilation = {_tuple(module.dilation[::-1])}",
        f"groups = {module.groups}",
        "cross_correlation = true",
    ]
    if module.bias is None:
        options.append("use_bias = false")
    kernel = _tuple(module.kernel_size[::-1])
    code = f"Conv({kernel}, {module.in_channels} => {module.out_channels}; {', '.join(options)})"
    return LuxLayer(code, _weights(module), reversed=True)


def _group_norm(module: nn.GroupNorm, convert: Conversion) -> LuxLayer:
    affine = "" if module.affine else "affine = false, "
    code = f"GroupNorm({module.num_channels}, {module.num_groups}; {affine}epsilon = {number(module.eps)})"
    parameters = {"scale": module.weight, "bias": module.bias} if module.affine else {}
    return LuxLayer(code, parameters)


def _sequential(module: nn.Sequential, convert: Conversion) -> LuxLayer:
    return chain([convert(child, name) for name, child in module._modules.items()])


def _activation(function: str, *names: str) -> Converter:
    """An elementwise module whose attributes ``names`` are the constants of ``function``."""
    return lambda module, convert: elementwise(function, *(float(getattr(module, name)) for name in names))


def _identity(module: nn.Identity, convert: Conversion) -> LuxLayer:
    return LuxLayer("NoOpLayer()")


def _gelu(module: nn.GELU, convert: Conversion) -> LuxLayer:
    return elementwise("gelu_tanh" if module.approximate == "tanh" else "gelu_erf")


_BUILT_IN: dict[type[nn.Module], Converter] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.GroupNorm: _group_norm,
    nn.Sequential: _sequential,
    nn.Identity: _identity,
    nn.Tanh: _activation("tanh"),
    nn.Sigmoid: _activation("sigmoid"),
    nn.ReLU: _activation("relu"),
    nn.ReLU6: _activation("relu6"),
    nn.LeakyReLU: _activation("leaky", "negative_slope"),
    nn.ELU: _activation("exp_linear", "alpha"),
    nn.CELU: _activation("continuous_exp_linear", "alpha"),
    nn.SELU: _activation("scaled_exp_linear"),
    nn.GELU: _gelu,
    nn.SiLU: _activation("swish"),
    nn.Mish: _activation("mish"),
    nn.Softplus: _activation("softplus_above", "beta", "threshold"),
    nn.Softsign: _activation("softsign"),
    nn.LogSigmoid: _activation("logsigmoid"),
    nn.Tanhshrink: _activation("tanhshrink"),
    nn.Softshrink: _activation("soft_shrink", "lambd"),
    nn.Hardshrink: _activation("hard_shrink", "lambd"),
    nn.Threshold: _activation("above", "threshold", "value"),
    nn.Hardtanh: _activation("hard_tanh", "min_val", "max_val"),
    nn.Hardsigmoid: _activation("hard_sigmoid"),
    nn.Hardswish: _activation("hard_swish"),
}
for _cls, _converter in _BUILT_IN.items():
    register_lux(_cls, _converter)
