"""Passes over captured graphs: one output of several, constants computed ahead, duplicates merged."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

#: Operators that only look at their input in another way: never worth a constant of their own.
VIEWS = frozenset(
    {
        aten.view.default,
        aten._unsafe_view.default,
        aten.reshape.default,
        aten.expand.default,
        aten.permute.default,
        aten.transpose.int,
        aten.t.default,
        aten.select.int,
        aten.slice.Tensor,
        aten.unsqueeze.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.alias.default,
        aten.detach.default,
        aten.clone.default,
        aten.diagonal.default,
        aten.unfold.default,
    }
)
_FILLS = frozenset({aten.full.default, aten.full_like.default, aten.scalar_tensor.default})


def copied(module: fx.GraphModule) -> fx.GraphModule:
    """A copy that shares no node."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    result = graph.graph_copy(module.graph, values)
    graph.output(result)
    for old, new in values.items():
        new.meta = copy.copy(old.meta)
    return fx.GraphModule(torch.nn.Module(), graph)


def only_output(module: fx.GraphModule, indices: Sequence[int]) -> fx.GraphModule:
    """The part of a graph that computes the outputs with the given indices."""
    part = copied(module)
    output = part.graph.output_node()
    results: Any = output.args[0]
    output.args = ([results[i] for i in indices],)
    _clean(part.graph)
    return part


def _clean(graph: fx.Graph) -> None:
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op == "output")
    for node in [n for n in graph.nodes if n.op == "placeholder" and not n.users]:
        graph.erase_node(node)


def _hashable(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return (type(value).__name__, *map(_hashable, value))
    if isinstance(value, dict):
        return tuple((key, _hashable(value[key])) for key in sorted(value))
    return (type(value).__name__, value)  # 1, 1.0 and True are different arguments


#: Fills that name a tensor for its shape only, and what with.
_LIKE: dict[Any, Any] = {
    aten.full_like.default: None,
    aten.zeros_like.default: 0,
    aten.ones_like.default: 1,
    aten.empty_like.default: 0,
    aten.new_zeros.default: 0,
    aten.new_empty.default: 0,
    aten.new_empty_strided.default: 0,
    aten.new_full.default: None,
}


def _as_full(graph: fx.Graph, node: fx.Node) -> None:
    number: Any = _LIKE[node.target]
    if number is None:
        number = node.args[-1] if len(node.args) > 1 else node.kwargs["fill_value"]
    value = node.meta["val"]
    with graph.inserting_before(node):
        new = graph.call_function(
            aten.full.default, (list(value.shape), number), {"dtype": value.dtype, "device": value.device}
        )
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def merged_duplicates(module: fx.GraphModule) -> None:
    """Merge nodes that compute the same, drop those that do nothing, and dead code."""
    graph = module.graph
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in (aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
            continue
        if node.target in _LIKE:
            _as_full(graph, node)
            continue
        key = (node.target, _hashable(node.args), _hashable(node.kwargs))
        if key in seen:
            node.replace_all_uses_with(seen[key])
            graph.erase_node(node)
        else:
            seen[key] = node
    _clean(graph)
    graph.lint()


def folded(graphs: dict[str, fx.GraphModule], tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Compute ahead what depends on constants only; returns the constants that the graphs then use.

    Numbers (0-dim) of another precision become numbers of the state's: torch computes with them in the precision of
    the tensors beside them.
    """
    constants: list[Tensor] = []
    known: dict[Any, int] = {}
    for module in graphs.values():
        values = _constant_values(module, tensors)
        _replace(module, values, constants, known, dtype)
    return constants


def _constant_values(module: fx.GraphModule, tensors: Sequence[Tensor]) -> dict[fx.Node, Any]:
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in module.graph.nodes:
            if node.op == "placeholder" and node.name.startswith("c"):
                values[node] = tensors[int(node.name[1:])].detach()
            elif node.op == "call_function" and all(x in values for x in node.all_input_nodes):
                args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: values[n])
                value = node.target(*args, **kwargs)
                if isinstance(value, Tensor) and value._is_zerotensor():  # zeros without memory, of forward derivatives
                    value = torch.zeros(value.shape, dtype=value.dtype, device=value.device)
                values[node] = value
    return values


def _is_fill(node: fx.Node) -> bool:
    return node.target in _FILLS or (
        node.target in VIEWS and isinstance(node.args[0], fx.Node) and _is_fill(node.args[0])
    )


def _replace(
    module: fx.GraphModule,
    values: dict[fx.Node, Any],
    constants: list[Tensor],
    known: dict[Any, int],
    dtype: torch.dtype,
) -> None:
    graph = module.graph
    first = next(iter(graph.nodes))
    for node in [n for n in graph.nodes if n in values]:
        value = values[node]
        outside = [user for user in node.users if user not in values or user.target in VIEWS]
        if not outside or not isinstance(value, Tensor) or _is_fill(node) or node.target in VIEWS:
            continue
        if value.ndim == 0 and value.is_floating_point():
            value = value.to(dtype)
        key = _identity(value)
        if key not in known:
            known[key] = len(constants)
            constants.append(value)
        with graph.inserting_before(first):
            new = graph.placeholder(f"k{known[key]}")
        new.meta = {**node.meta, "val": value}
        for user in outside:
            user.replace_input_with(node, new)
    _clean(graph)
    for node in [n for n in graph.nodes if n.op == "placeholder" and n.name.startswith("c")]:
        # Only views of it are used.
        value = values[node]
        key = _identity(value)
        if key not in known:
            known[key] = len(constants)
            constants.append(value)
        with graph.inserting_before(node):
            new = graph.placeholder(f"k{known[key]}")
        new.meta = {**node.meta, "val": value}
        node.replace_all_uses_with(new)
        graph.erase_node(node)
    placeholders: dict[str, fx.Node] = {}
    for node in [n for n in graph.nodes if n.op == "placeholder"]:
        name = str(node.target)
        if name.startswith("k"):
            if name in placeholders:
                node.replace_all_uses_with(placeholders[name])
                graph.erase_node(node)
                continue
            placeholders[name] = node
            node.name = node.target = "c" + name[1:]
    module.recompile()


def _identity(value: Tensor) -> Any:
    """Equal for constants of equal content, so that the five functions share them."""
    content = value.detach().cpu().contiguous()
    return (value.dtype, tuple(value.shape), content.reshape(-1).view(torch.uint8).numpy().tobytes())
