"""The running cost of a solve in either direction of time."""

from __future__ import annotations

from typing import Any

from pynode.layout import Tree, leaves_of, rebuild
from pynode.solution import Solution


def over_length(sol: Solution, cost: Any) -> Tree:
    """The integral of ``cost`` over ``|dt|``; its last leaves may be sums over steps, which have no direction."""
    leaves = [leaf for _, leaf in leaves_of(sol.running_cost, "running_cost")]
    start, end = sol.span
    if end < start:
        rates = len(leaves) - len(getattr(cost, "of_steps", ()))
        leaves[:rates] = [-leaf for leaf in leaves[:rates]]
    return rebuild(sol.running_cost, iter(leaves))
