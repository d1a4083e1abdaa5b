"""Lowering for programs that call matrix products on flat memory: what several of them take is computed once."""

from __future__ import annotations

from typing import Any

from torch import fx

from pynode.capture.ir import Op, Value, leaves
from pynode.capture.lower import Lowering, note_of
from pynode.capture.lower_views import aten

#: Operators that want their arguments in memory.
_PRODUCTS = frozenset({aten.mm.default, aten.bmm.default, aten.convolution.default, aten.convolution_backward.default})
#: Those whose result is their argument seen in another way.
_VIEWS = frozenset(
    {
        aten.view.default,
        aten._unsafe_view.default,
        aten.reshape.default,
        aten.permute.default,
        aten.transpose.int,
        aten.t.default,
        aten.expand.default,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.clone.default,
    }
)


class KeepingLowering(Lowering):
    """Keeps even cheap expressions that a product and something else take."""

    def _settled(self, node: fx.Node, found: Any) -> Any:
        found = super()._settled(node, found)
        if not isinstance(found, Value) or not isinstance(found.expr, Op) or len(node.users) < 2:
            return found
        wanted = _multiplied(node) and any(True for _ in leaves(found.expr))
        return self.kept(found, note_of(node)) if wanted else found


def _multiplied(node: fx.Node) -> bool:
    return any(user.target in _PRODUCTS or (user.target in _VIEWS and _multiplied(user)) for user in node.users)
