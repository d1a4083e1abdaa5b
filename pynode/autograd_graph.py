"""Looking at autograd's graphs: the leaves behind a tensor, and where a graph that was there before begins."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from typing import Any

import torch
from torch import Tensor


def _leaf_type() -> type:
    """The class of the nodes that stand for leaves (AccumulateGrad), which torch does not name in Python."""
    leaf = torch.zeros((), requires_grad=True)
    with torch.enable_grad():
        view = leaf.view_as(leaf)
    assert view.grad_fn is not None
    return type(view.grad_fn.next_functions[0][0])


_LEAF: Any = _leaf_type()

#: A node of an autograd graph and the number of one of its outputs.
Edge = tuple[Any, int]


def walk(
    outputs: Iterable[Tensor],
    own: Container[int],
    found: Container[Edge] = (),
    *,
    mark: int = -1,
    shared: Container[Any] | None = None,
) -> tuple[list[Tensor], set[Edge]]:
    """Leaves that ``outputs`` depend on (without ``own``), and the edges into graph that was there before.

    Those are the edges to ``found`` tensors, and to ``shared`` nodes if these are given. Otherwise torch's numbers
    decide: within a thread nodes are numbered upward, so that what was computed since ``mark`` is younger than it and
    older than its own result.
    """
    leaves: dict[int, Tensor] = {}
    outer: set[Edge] = set()
    stack: list[Any] = []
    for output in outputs:
        if output.grad_fn is not None:
            stack.append((output.grad_fn, output.output_nr, math.inf))
        elif output.requires_grad and id(output) not in own:
            leaves[id(output)] = output
    seen: set[Any] = set()
    while stack:
        node, number, youngest = stack.pop()
        if type(node) is _LEAF:
            if id(node.variable) not in own:
                leaves[id(node.variable)] = node.variable
        elif node not in seen:
            age = node._sequence_nr()
            if (node, number) in found or (node in shared if shared is not None else not mark <= age <= youngest):
                outer.add((node, number))
            else:
                seen.add(node)
                stack += [(parent, index, age) for parent, index in node.next_functions if parent is not None]
    return list(leaves.values()), outer


def unknown_leaf(
    outputs: Iterable[Tensor], known: Container[int], own: Container[int], stop: Iterable[Any]
) -> Tensor | None:
    """A leaf that ``outputs`` depend on beside those of identities ``known`` and ``own``, or None; ``stop``: nodes not
    to look behind. A quicker :func:`walk`, as every step of a gradient asks."""
    stack: list[Any] = []
    for output in outputs:
        if output.grad_fn is not None:
            stack.append(output.grad_fn)
        elif output.requires_grad and id(output) not in known and id(output) not in own:
            return output
    seen = set(stop)
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if type(node) is _LEAF:
            leaf: Tensor = node.variable
            if id(leaf) not in known and id(leaf) not in own:
                return leaf
            continue
        for parent, _ in node.next_functions:
            if parent is not None:
                stack.append(parent)
    return None


def nodes(output: Tensor) -> set[Any]:
    """All nodes of the graph of a tensor but its leaves'."""
    nodes: set[Any] = set()
    stack: list[Any] = [output.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in nodes and type(node) is not _LEAF:
            nodes.add(node)
            stack += [parent for parent, _ in node.next_functions]
    return nodes


def above(outer: set[Edge]) -> tuple[list[Tensor], set[Edge]]:
    """Leaves of the graph above the given edges, and those of the edges that are themselves above another one."""
    leaves: dict[int, Tensor] = {}
    nested: set[Edge] = set()
    stack: list[Any] = [node for node, _ in outer]
    seen: set[Any] = set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if type(node) is _LEAF:
            leaves[id(node.variable)] = node.variable
        for parent, number in node.next_functions:
            if parent is not None:
                stack.append(parent)
                if (parent, number) in outer:
                    nested.add((parent, number))
    return list(leaves.values()), nested
