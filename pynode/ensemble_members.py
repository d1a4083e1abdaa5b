"""The members of an ensemble: states, times and arguments of some of them, and what stands behind these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pynode.errors import GradientError, InputError, explain
from pynode.layout import leaves_of, rebuild
from pynode.per_sample import PerSample, selected, unwrapped


class Members:
    """The members, all of whose tensors are taken off the user's tape and onto one of this rank's.

    Attributes
    ----------
    count : int
    given, own : list of Tensor
        The tensors that require a gradient: the user's, and those that stand for them here.
    tensors : list of (name, Tensor)
        All the user's.
    own_times : bool
        Whether ``t`` is (N, T).
    """

    def __init__(self, y0s: Any, t: Any, args: tuple[Any, ...], trajectories: int | None, seed: int) -> None:
        if not isinstance(args, tuple):
            raise InputError(
                explain(
                    f"args is a {type(args).__name__}", "a tuple of what f takes after (t, y)", "write args=(value,)"
                )
            )
        self._make = y0s if callable(y0s) and not isinstance(y0s, Tensor) else None
        self._seed = seed
        if self._make is None:
            self.count = _leading([*leaves_of(y0s, "y0s")], trajectories)
        elif isinstance(trajectories, int) and trajectories > 0:
            self.count = trajectories
        else:
            came = f"trajectories={trajectories!r} with a callable y0s"
            raise InputError(explain(came, "the number of members", "pass trajectories=N"))
        self.given: list[Tensor] = []
        self.own: list[Tensor] = []
        self.tensors: list[tuple[str, Tensor]] = []
        self._y0s = None if self._make is not None else self._taken(y0s, "y0s")
        plain, per_row = unwrapped(args)
        named = [(name, x) for (name, x), inside in zip(leaves_of(plain, "args"), per_row, strict=True) if inside]
        if named:
            _leading(named, self.count, "args")
        self._args: Any = self._taken(args, "args")
        self.t: Any = self._taken(t, "t") if isinstance(t, Tensor) else t
        self.own_times = isinstance(t, Tensor) and t.ndim == 2
        if self.own_times:
            _leading([("t", t)], self.count)

    def _taken(self, tree: Any, name: str) -> Any:
        if isinstance(tree, PerSample):
            return PerSample(self._taken(tree.tree, name))
        if isinstance(tree, dict | tuple | list):
            paths = _branches(tree, name)
            return _rebuilt(tree, [self._taken(branch, path) for path, branch in paths])
        if not isinstance(tree, Tensor):
            return tree
        self.tensors.append((name, tree))
        if not (tree.requires_grad and torch.is_grad_enabled()):
            return tree.detach()
        self.given.append(tree)
        self.own.append(tree.detach().requires_grad_())
        return self.own[-1]

    @property
    def device(self) -> torch.device:
        """Where the states are; the processor where a callable makes them."""
        return next((x.device for name, x in self.tensors if name.startswith("y0s")), torch.device("cpu"))

    def some(self, rows: range) -> tuple[Any, Any, tuple[Any, ...]]:
        """``y0``, ``t`` and ``args`` of some members."""
        t = self.t[rows.start : rows.stop] if self.own_times else self.t
        args: tuple[Any, ...] = selected(self._args, torch.arange(rows.start, rows.stop, device=self.device))
        if self._make is None:
            leaves = [x[rows.start : rows.stop] for _, x in leaves_of(self._y0s)]
            return rebuild(self._y0s, iter(leaves)), t, args
        made = [self._one(i) for i in rows]
        y0 = stacked([y for y, _ in made], "y0")
        like = next(x for _, x in leaves_of(y0))
        own = stacked([_as_tensors(own, like) for _, own in made], "own arguments")
        return y0, t, (*args, *(PerSample(x) for x in own))

    def _one(self, i: int) -> tuple[Any, tuple[Any, ...]]:
        assert self._make is not None
        state = np.random.SeedSequence([self._seed, i]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
        made = self._make(i, generator)
        if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], tuple)):
            raise InputError(
                explain(f"y0s({i}, generator) returned a {type(made).__name__}", "(y0, own)", "return y0, () at least")
            )
        if any(isinstance(x, Tensor) and x.requires_grad for _, x in leaves_of(made)):
            raise GradientError(
                explain(
                    f"y0s({i}, generator) returned a tensor that requires a gradient",
                    "tensors without one: members that a callable makes have no gradient of their own",
                    "give y0s as a tensor and what members differ by as args=(PerSample(x),), or detach it",
                )
            )
        return made


def _branches(tree: Any, name: str) -> Iterator[tuple[str, Any]]:
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return ((f"{name}[{key!r}]", branch) for key, branch in pairs)


def _rebuilt(tree: Any, branches: list[Any]) -> Any:
    """A container like ``tree`` with other contents."""
    if isinstance(tree, dict):
        return rebuild(dict.fromkeys(tree), iter(branches))
    return type(tree)(*branches) if hasattr(tree, "_fields") else type(tree)(branches)


def _leading(leaves: list[tuple[str, Any]], count: int | None, what: str = "y0s") -> int:
    for name, x in leaves:
        if not isinstance(x, Tensor) or x.ndim < 1 or len(x) != (len(leaves[0][1]) if count is None else count):
            came = f"of shape {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            expected = "N" if count is None else str(count)
            raise InputError(
                explain(f"{name} is {came}", f"tensors with leading dimension {expected}", "stack what members have")
            )
    if not leaves or not len(leaves[0][1]):
        raise InputError(explain(f"{what} has no member", "at least one", "stack the initial states"))
    return len(leaves[0][1])


def _as_tensors(own: tuple[Any, ...], like: Tensor) -> tuple[Any, ...]:
    numbers = (
        torch.as_tensor(x, dtype=None if isinstance(x, Tensor) else like.dtype.to_real()) for _, x in leaves_of(own)
    )
    found: tuple[Any, ...] = rebuild(own, numbers)
    return found


def stacked(trees: list[Any], what: str) -> Any:
    """One tree whose leaves have a leading dimension of members. Raises InputError where they are unlike."""
    columns = [[x for _, x in leaves_of(tree)] for tree in trees]
    for index, column in enumerate(columns):
        if not all(isinstance(x, Tensor) for x in column) or [x.shape for x in column] != [x.shape for x in columns[0]]:
            raise InputError(
                explain(f"{what} of member {index} of a batch is unlike the first's", "tensors of one form", "pad them")
            )
    return rebuild(trees[0], iter([torch.stack(rows) for rows in zip(*columns, strict=True)]))
