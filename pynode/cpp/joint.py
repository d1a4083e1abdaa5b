"""The derivative and its pullback as one program in two halves: what the derivative needs, then the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from pynode.capture.accesses import reads, writes
from pynode.capture.graphs import merged_duplicates
from pynode.capture.ir import Assign, Buffer, Statement, View


def joined(modules: Sequence[fx.GraphModule]) -> fx.GraphModule:
    """One graph with all outputs, in which nothing is computed twice."""
    graph = fx.Graph()
    inputs: dict[str, fx.Node] = {}
    for module in modules:
        for node in module.graph.nodes:
            if node.op == "placeholder" and node.name not in inputs:
                inputs[node.name] = graph.placeholder(node.name)
                inputs[node.name].meta = dict(node.meta)
    results: list[Any] = []
    for module in modules:
        values = {node: inputs[node.name] for node in module.graph.nodes if node.op == "placeholder"}
        for node in module.graph.nodes:
            if node.op == "call_function":
                values[node] = graph.node_copy(node, lambda n, known=values: known[n])  # type: ignore[misc]
                values[node].meta = dict(node.meta)
        outputs = module.graph.output_node().args[0]
        assert isinstance(outputs, Sequence)
        results += [values[x] if isinstance(x, fx.Node) else None for x in outputs]
    graph.output(results)
    whole = fx.GraphModule(torch.nn.Module(), graph)
    merged_duplicates(whole)
    return whole


def root(view: View) -> Buffer:
    """The buffer it really lies in."""
    return view.buffer.resolved()[0]


def halves(statements: Sequence[Statement], result: Buffer) -> tuple[list[Statement], list[Statement]]:
    """What ``result`` needs, and the rest. Scalars, which depend on time only, are in both."""
    wanted = {id(result)}
    first: list[Statement] = []
    second: list[Statement] = []
    for statement in reversed(statements):
        if isinstance(statement, Assign):
            first.append(statement)
            second.append(statement)
        elif any(id(root(view)) in wanted for view in writes(statement)):
            first.append(statement)
            wanted |= {id(root(view)) for view in reads(statement)}
        else:
            second.append(statement)
    return first[::-1], second[::-1]


def left_behind(second: Sequence[Statement]) -> list[Buffer]:
    """Workspace that the second half reads and the first one fills, in the order of its use."""
    own = {id(root(view)) for statement in second for view in writes(statement)}
    found = [root(view) for statement in second for view in reads(statement)]
    return list({id(b): b for b in found if b.kind == "work" and id(b) not in own}.values())
