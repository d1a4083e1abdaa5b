"""Lux layers as text, with the torch parameters behind them. Nothing here needs Julia."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, eq=False)
class LuxLayer:
    """One layer of a Lux model.

    Attributes
    ----------
    code : str
        The Julia expression that makes it. Names of Lux and of pynode's ``PyNodeLuxExt`` can be used.
    parameters : mapping of str to Tensor
        The torch parameter behind each of its parameters, by the names that Lux gives them. The array has the index
        order of the tensor, (out, in) for a weight.
    reversed : bool
        The arrays have the reversed index order instead: (kernel width, kernel height, in, out) for the weight
        (out, in, kernel height, kernel width) of a convolution.
    timed : bool
        It takes ``(t, y)``. Others take ``y``.
    children : sequence of LuxLayer
        The layers of a chain.
    """

    code: str
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    reversed: bool = False
    timed: bool = False
    children: Sequence[LuxLayer] = ()

    @property
    def frozen(self) -> tuple[str, ...]:
        """The parameters that are not trained: Lux keeps them among the states."""
        return tuple(name for name, tensor in self.parameters.items() if not tensor.requires_grad)

    def source(self, indent: str = "") -> str:
        """The Julia expression of the whole layer."""
        if self.children:
            inner = indent + "    "
            lines = [inner + child.source(inner) for child in self.children]
            if self.timed:
                marks = "".join(f"{str(child.timed).lower()}, " for child in self.children)
                lines.append(f"{inner}timed = ({marks[:-1]})")
            return f"{'TimedChain' if self.timed else 'Chain'}(\n" + ",\n".join(lines) + f",\n{indent})"
        if self.frozen:
            names = "".join(f":{name}, " for name in self.frozen)
            return f"Lux.Experimental.freeze({self.code}, ({names}))"
        return self.code


def chain(layers: Sequence[LuxLayer]) -> LuxLayer:
    """One layer after the other. It takes ``(t, y)`` if one of them does, and hands the time to those."""
    if not layers:
        return LuxLayer("NoOpLayer()")
    return LuxLayer("", timed=any(layer.timed for layer in layers), children=tuple(layers))


def elementwise(function: str, *constants: float) -> LuxLayer:
    """``function.(y, constants...)``, with a function of Julia, NNlib or ``PyNodeLuxExt``."""
    return LuxLayer(f"Activation({', '.join([function, *map(number, constants)])})")


def concat_time(dim: int = -1, *, before: bool = False) -> LuxLayer:
    """``y`` with the time as one more channel after (``before``: before) those of ``dim`` of the torch tensor."""
    return LuxLayer(f"ConcatTime({dim}; before = {str(before).lower()})", timed=True)


def augment(channels: int, dim: int = -1) -> LuxLayer:
    """``y`` with ``channels`` more channels of zeros in ``dim`` of the torch tensor (Dupont, Doucet and Teh 2019)."""
    return LuxLayer(f"Augment({channels}, {dim})")


def number(x: float) -> str:
    """A number as Julia reads it."""
    if math.isfinite(x):
        return repr(float(x))
    return "NaN" if math.isnan(x) else ("Inf" if x > 0 else "-Inf")


def parameter_paths(layer: LuxLayer, path: tuple[str, ...] = ()) -> list[tuple[str, Tensor, bool]]:
    """Every parameter of a layer: its path in Lux (in the states if it is frozen), the tensor, whether reversed."""
    if layer.children:
        return [
            found
            for i, child in enumerate(layer.children, 1)
            for found in parameter_paths(child, (*path, f"layer_{i}"))
        ]
    kept = ("states", *path, "frozen_params")
    return [
        (".".join((*(kept if name in layer.frozen else path), name)), tensor, layer.reversed)
        for name, tensor in layer.parameters.items()
    ]
