"""Arguments of ``f`` with one part for every row of the batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pynode.layout import Tree, leaves_of, rebuild


class PerSample:
    """An argument of ``f`` of which every row of the batch has a part of its own.

    Under ``solve(..., batching="independent")`` ``f`` is called with the rows that are still running: a tensor in
    ``PerSample`` arrives with the parts of these rows alone, in their order. Under ``batching="joint"``, where all
    rows are always there, it arrives whole.

    Parameters
    ----------
    tree : tensor or tree of tensors
        Leaves of any dtype with leading dimension B, that of the state's.

    Examples
    --------
    ``solve(vanderpol, y0, t, args=(PerSample(mu),), batching="independent")`` with ``mu`` (B, 1) calls
    ``vanderpol(t, y, mu)`` with ``t`` (b, 1), ``y`` (b, 2) and ``mu`` (b, 1).

    >>> stiffness = torch.tensor([[1.0], [4.0]])
    >>> f = lambda t, y, k: torch.cat([y[:, 1:], -k * y[:, :1]], 1)  # t (b, 1), y (b, 2), k (b, 1)
    >>> y0 = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> sol = pynode.solve(f, y0, [0.0, math.pi], args=(pynode.PerSample(stiffness),), batching="independent")
    >>> sol.ys[-1, :, 0].round(decimals=3)  # cos(pi), cos(2 pi)
    tensor([-1.,  1.])
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = tree

    def __repr__(self) -> str:
        return f"PerSample({self.tree!r})"


def unwrapped(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], list[bool]]:
    """``args`` without its ``PerSample`` wrappers, at any depth, and for each leaf of that whether it was in one."""
    inside: list[bool] = []

    def strip(tree: Any, within: bool) -> Any:
        if isinstance(tree, PerSample):
            return strip(tree.tree, True)
        if isinstance(tree, dict):
            pairs = [(key, strip(branch, within)) for key, branch in tree.items()]
            return _like(tree, dict(pairs))
        if isinstance(tree, tuple | list):
            branches = [strip(branch, within) for branch in tree]
            return type(tree)(*branches) if hasattr(tree, "_fields") else type(tree)(branches)
        inside.append(within)
        return tree

    return strip(args, False), inside


def _like(tree: dict[Any, Any], stripped: dict[Any, Any]) -> dict[Any, Any]:
    """A dictionary of ``tree``'s own kind; the same one where nothing in it was wrapped."""
    if type(tree) is dict:
        return stripped
    if all(stripped[key] is tree[key] for key in tree):
        return tree
    own = tree.copy()
    own.update(stripped)
    return own


def whole(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """``args`` as joint stepping passes it: ``PerSample`` tensors with all their rows."""
    if any(isinstance(leaf, PerSample) for _, leaf in leaves_of(args, "args")):
        return unwrapped(args)[0]
    return args


def selected(args: Any, rows: Tensor) -> Any:
    """``args`` with the parts of some rows, given by their indices (b,), in its ``PerSample`` wrappers."""
    if isinstance(args, PerSample):
        leaves = [leaf.index_select(0, rows) for _, leaf in leaves_of(args.tree, "args")]
        return PerSample(rebuild(args.tree, iter(leaves)))
    if isinstance(args, dict):
        return _like(args, {key: selected(branch, rows) for key, branch in args.items()})
    if isinstance(args, tuple | list):
        branches = [selected(branch, rows) for branch in args]
        return type(args)(*branches) if hasattr(args, "_fields") else type(args)(branches)
    return args
