"""Convolutions and their derivatives: one statement in three directions."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from pynode.capture.ir import ConvolutionSizes, Convolve, Value
from pynode.capture.lower import Lowering, arguments, note_of, rule
from pynode.capture.lower_sums import reduced
from pynode.capture.refusal import NotCapturable, source_line
from pynode.errors import explain

aten = torch.ops.aten


class _Spec:
    """A convolution of images (N, C, H, W) to (N, O, P, Q); signals are images of height 1."""

    def __init__(self, node: fx.Node, x: Any, w: Any, rest: Any) -> None:
        stride, padding, dilation, transposed, _, groups = rest
        rank = len(x) - 2
        if rank not in (1, 2):
            raise NotCapturable(
                explain(
                    f"{node.target}{source_line(node)} in {rank} dimensions",
                    "convolutions in one or two dimensions",
                    "use the callback route",
                )
            )
        one, none = [1] * (2 - rank), [0] * (2 - rank)
        self.stride = _pair([*one, *(stride * rank)[:rank]])
        self.padding = _pair([*none, *(padding * rank)[:rank]])
        self.dilation = _pair([*one, *(dilation * rank)[:rank]])
        self.transposed, self.groups = transposed, groups
        self.image = [*x[:2], *one, *x[2:]]
        self.kernel = [*w[:2], *one, *w[2:]]

    def sizes(self, other: list[int]) -> ConvolutionSizes:
        """The sizes; ``other`` is the shape of the other side's image."""
        wide, narrow = (other, self.image) if self.transposed else (self.image, other)
        n, c, h, w = wide
        _, o, p, q = narrow
        r, s = self.kernel[2:]
        return ConvolutionSizes(n, c, h, w, o, p, q, r, s, self.groups, self.stride, self.padding, self.dilation)


def _pair(values: list[int]) -> tuple[int, int]:
    high, wide = values
    return high, wide


def _image(shape: Any) -> list[int]:
    return [*shape[:2], *[1] * (4 - len(shape)), *shape[2:]]


@rule(aten.convolution.default)
def _convolution(low: Lowering, node: fx.Node) -> Value:
    x, w = low.value(arguments(node)[0]), low.value(arguments(node)[1])
    rest: Any = arguments(node)[3:]
    spec = _Spec(node, x.shape, w.shape, rest)
    shape = tuple(node.meta["val"].shape)
    into = low.fresh(shape)
    other = _image(shape)
    kind = "input" if spec.transposed else "forward"
    sizes = spec.sizes(other)
    columns = low.fresh((sizes.columns,))
    low.statements.append(Convolve(kind, into, low.in_order(x), low.in_order(w), columns, sizes, note_of(node)))
    result = low.loaded(into)
    if arguments(node)[2] is None:
        return result
    bias = low.value(arguments(node)[2])
    spread = low.seen(bias, lambda b: b.view(1, -1, *[1] * (len(shape) - 2)).expand(shape))
    from pynode.capture.lower_pointwise import plus

    return Value(plus(result.expr, spread.expr), shape)


@rule(aten.convolution_backward.default)
def _backward(low: Lowering, node: fx.Node) -> list[Value | None]:
    g, x, w = (low.value(a) for a in arguments(node)[:3])
    rest: Any = arguments(node)[4:10]
    wanted: Any = arguments(node)[10]
    used = {user.args[1] for user in node.users if user.users}
    spec = _Spec(node, x.shape, w.shape, rest)
    other = _image(g.shape)
    sizes = spec.sizes(other)
    columns = low.fresh((sizes.columns,))
    found: list[Value | None] = [None, None, None]
    note = note_of(node)
    if wanted[0] and 0 in used:
        into = low.fresh(x.shape)
        kind = "forward" if spec.transposed else "input"
        low.statements.append(Convolve(kind, into, low.in_order(g), low.in_order(w), columns, sizes, "input's " + note))
        found[0] = low.loaded(into)
    if wanted[1] and 1 in used:
        into = low.fresh(w.shape)
        narrow, wide = (x, g) if spec.transposed else (g, x)
        low.statements.append(
            Convolve("weight", into, low.in_order(narrow), low.in_order(wide), columns, sizes, "weight's " + note)
        )
        found[1] = low.loaded(into)
    if wanted[2] and 2 in used:
        dims = [0, *range(2, len(g.shape))]
        found[2] = reduced(low, "+", g, dims, False, g.dtype, "bias's " + note)
    return found
