"""A field and its products as graphs of a few tensor operators.

``f(t, u)``, ``λ·∂f/∂u``, ``λ·∂f/∂p``, ``λ·∂f/∂t`` and ``∂f/∂t`` are traced with fake tensors, so that a value that
Python asks for is an error and never a silent specialisation. The trace sees modules' parameters, and those reached
through closures and globals, as the tensors they are; their identity tells what belongs to the parameter vector and
what is a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import preserve_node_meta
from torch.nn.attention import SDPBackend, sdpa_kernel

from pynode.capture.decompositions import TABLE
from pynode.capture.graphs import copied, folded, merged_duplicates, only_output
from pynode.capture.linear_solves import SOLVES
from pynode.capture.refusal import NotCapturable, check_trace, located, refusal_of, source_line
from pynode.dependencies import Dependencies
from pynode.errors import explain
from pynode.interrupts import Deferred
from pynode.problem import Field, ODEProblem
from pynode.solution import Counts

__all__ = ["Captured", "NotCapturable", "Slot", "capture"]


@dataclass(frozen=True)
class Slot:
    """Where a tensor lies in the parameter vector."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Captured:
    """A field as graphs.

    Every graph has the placeholders ``t`` (0-dim), ``u`` (n,), ``a`` (n,), ``p0``, ``p1``... (the differentiable
    tensors, then data) and ``c0``, ``c1``... (the constants), as far as it uses them, and returns a list: ``f``: the
    derivative (n,); ``vjp``: ``a·∂f/∂u`` (n,) or None; ``vjp_p``: ``a·∂f/∂p_i`` or None for each slot; ``vjp_t``: the
    0-dim ``a·∂f/∂t`` or None; ``tgrad``: ``∂f/∂t`` (n,) or None. None stands where there is no dependence, or where
    none is asked for.

    Attributes
    ----------
    graphs : dict of str to torch.fx.GraphModule
    slots : tuple of Slot
        The differentiable tensors, ``Dependencies.arguments`` then ``.parameters``, and data.
    constants : tuple of Tensor
        Values of the constants.
    dtype : torch.dtype
        The state's real dtype.
    size : int
        Length n of the state.
    has_t : bool
        Whether f depends on time.
    """

    graphs: dict[str, fx.GraphModule]
    slots: tuple[Slot, ...]
    constants: tuple[Tensor, ...]
    dtype: torch.dtype
    size: int
    has_t: bool

    @property
    def parameters_size(self) -> int:
        return sum(slot.size for slot in self.slots)


def capture(
    problem: ODEProblem, dependencies: Dependencies | None = None, products: bool = True, data: bool = False
) -> Captured:
    """Trace the field of ``problem`` and its products with a cotangent.

    Parameters
    ----------
    problem : ODEProblem
    dependencies : Dependencies, optional
        The tensors that make up the parameter vector; without it, all that f uses are constants.
    products : bool
        False leaves all graphs but that of f out, and their tracing.
    data : bool
        The tensors in ``args`` that require no gradient follow in the parameter vector, where every solve may have its
        own; otherwise they are constants.

    Raises
    ------
    NotCapturable
        Where f needs values (``if y.sum() > 0``, ``.item()``, numpy), draws random numbers, changes its own state, or
        computes in another precision than the state's.
    """
    # Outside inference mode, whose tensors autograd cannot follow.
    with Deferred(), torch.inference_mode(False):
        return _capture(problem, dependencies, products, data)


def _capture(problem: ODEProblem, dependencies: Dependencies | None, products: bool, data: bool) -> Captured:
    layout = problem.layout
    if not layout.is_real:
        raise NotCapturable(
            explain("the state is complex", "a real state", "hold real and imaginary parts as real tensors")
        )
    given = problem.arguments.tensors if dependencies is not None else []
    parameters = list(dependencies.parameters) if dependencies is not None else []
    tracer = _Tracer(problem, given, parameters, problem.arguments.values(layout.dtype, layout.device) if data else [])
    joint = tracer.trace(_joint if products else _derivative)
    index = {"f": [0]}
    if products:
        index |= {"vjp": [2], "vjp_p": list(range(3, 3 + len(tracer.inputs))), "vjp_t": [1]}
    graphs = {name: only_output(joint, outputs) for name, outputs in index.items()}
    has_t = any(node.name == "t" for node in graphs["f"].graph.nodes if node.op == "placeholder")
    if products:
        depends = graphs["vjp_t"].graph.output_node().args[0] != [None]
        graphs["tgrad"] = tracer.trace(_tangent) if depends else copied(graphs["vjp_t"])
    constants = folded(graphs, tracer.constants, layout.dtype)
    for graph in graphs.values():
        merged_duplicates(graph)
        check_dtypes(graph, layout.dtype)
    captured = Captured(graphs, _slots(problem, tracer.inputs), tuple(constants), layout.dtype, layout.size, has_t)
    tracer.check(captured)
    return captured


def check_dtypes(module: fx.GraphModule, dtype: torch.dtype) -> None:
    """Refuse values of another precision than the state's; indices and masks are fine."""
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, Tensor):
            continue
        if value.dtype in (dtype, torch.bool, torch.int64, torch.int32):
            continue
        if value.ndim == 0 and value.dtype in (torch.float32, torch.float64):
            continue  # a number beside tensors: torch computes with it in their precision
        raise NotCapturable(
            explain(
                f"f computes {value.dtype} values of shape {tuple(value.shape)} ({node.target}{source_line(node)})",
                f"the state's precision, {dtype}, throughout",
                "convert the model or the state, and do not use autocast",
            )
        )


def _derivative(
    field: Callable[[Tensor, Tensor], Tensor], t: Tensor, u: Tensor, a: Tensor, inputs: Sequence[Tensor]
) -> list[Tensor | None]:
    return [field(t, u)]


def _joint(
    field: Callable[[Tensor, Tensor], Tensor], t: Tensor, u: Tensor, a: Tensor, inputs: Sequence[Tensor]
) -> list[Tensor | None]:
    out = field(t, u)
    if not out.requires_grad:
        return [out, *[None] * (2 + len(inputs))]
    wanted = [x for x in inputs if x.requires_grad]
    found = iter(torch.autograd.grad(out, [t, u, *wanted], a, allow_unused=True))
    return [out, next(found), next(found), *(next(found) if x.requires_grad else None for x in inputs)]


def _tangent(
    field: Callable[[Tensor, Tensor], Tensor], t: Tensor, u: Tensor, a: Tensor, inputs: Sequence[Tensor]
) -> list[Tensor | None]:
    # λ·∂f/∂t is linear in λ: its gradient with respect to λ is ∂f/∂t, whatever λ is.
    (product,) = torch.autograd.grad(field(t, u), [t], a, create_graph=True, allow_unused=True)
    if product is None or not product.requires_grad:
        return [None]
    return list(torch.autograd.grad(product, [a], allow_unused=True))


class _Tracer:
    """Traces functions of the field of one problem, with the same numbering of constants in all of them."""

    def __init__(
        self, problem: ODEProblem, arguments: list[Tensor], parameters: list[Tensor], data: list[Tensor]
    ) -> None:
        self.problem = problem
        self.arguments, self.data = arguments, data
        self.inputs = [*arguments, *parameters, *data]
        self.parameters = parameters
        self.constants: list[Tensor] = []
        self.time = problem.field(Counts()).time(problem.times[0])

    def trace(self, function: Callable[..., Any]) -> fx.GraphModule:
        """``function(field, t, u, a, inputs)`` as a functional graph of core operators."""
        layout, problem = self.problem.layout, self.problem
        parameters = self.parameters
        own = [x.detach() for x in (*self.arguments, *self.data)]
        count = len(self.arguments)
        u = problem.y0.detach().clone()

        def run(t: Tensor, u: Tensor, a: Tensor, *given: Tensor) -> Any:
            with torch.enable_grad(), problem.autocast():
                t, u, a = (x.detach().requires_grad_() for x in (t, u, a))
                arguments = [x.detach().requires_grad_() for x in given[:count]]
                data = [x.detach() for x in given[count:]]
                base = problem.field(Counts())
                if given:
                    changed = problem.arguments
                    if data:
                        changed = changed.with_values(data, layout.dtype, layout.device)
                    base = base.with_args(changed.replaced(arguments) if arguments else changed.args)
                field = located(Field(base.f, base.args, layout.released(), Counts()))
                return function(field, t, u, a, [*arguments, *parameters, *data])

        frozen = [x for x in parameters if not x.requires_grad]
        try:
            for x in frozen:
                x.requires_grad_()
            with sdpa_kernel(SDPBackend.MATH), preserve_node_meta():
                traced = make_fx(
                    run,
                    decomposition_table=SOLVES,
                    tracing_mode="fake",
                    _allow_non_fake_inputs=True,
                )(self.time, u, torch.ones_like(u), *own)
        except Exception as error:
            refusal = refusal_of(error)
            if refusal is None:
                raise
            raise refusal from error
        finally:
            for x in frozen:
                x.requires_grad_(False)
        check_trace(traced)
        return self._decomposed(traced)

    def _decomposed(self, traced: fx.GraphModule) -> fx.GraphModule:
        """The same graph without writes in place, in core operators, with all tensors it uses as placeholders."""
        names = ["t", "u", "a", *(f"p{i}" for i in range(len(self.inputs)))]
        values = [self.time, self.problem.y0.detach(), self.problem.y0.detach(), *(x.detach() for x in self.inputs)]
        placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
        # The traced function has no parameters among its arguments.
        first, skipped = 3 + len(self.arguments), len(self.parameters)
        places = [i if i < first else i + skipped for i in range(len(placeholders))]
        lifted: dict[str, int] = {node.name: i for node, i in zip(placeholders, places, strict=True)}
        known = {id(x): first + i for i, x in enumerate(self.parameters)}
        known |= {id(x): len(names) + i for i, x in enumerate(self.constants)}
        for node in traced.graph.nodes:
            if node.op == "get_attr":
                tensor = getattr(traced, node.target)
                if id(tensor) not in known:
                    known[id(tensor)] = len(names) + len(self.constants)
                    self.constants.append(tensor)
                lifted[node.name] = known[id(tensor)]
        names += [f"c{i}" for i in range(len(self.constants))]
        values += [x.detach() for x in self.constants]

        def run(*inputs: Tensor) -> Any:
            interpreter = _Lifted(traced, {name: inputs[i] for name, i in lifted.items()})
            with preserve_node_meta(), torch.no_grad():
                return interpreter.run(*(inputs[i] for i in places))

        functional = torch.func.functionalize(run, remove="mutations")
        module = make_fx(functional, decomposition_table=TABLE, tracing_mode="fake")(*values)
        for node, name in zip([n for n in module.graph.nodes if n.op == "placeholder"], names, strict=True):
            node._rename(name)
        for node in module.graph.nodes:
            if node.target is torch.ops.aten.copy_.default:
                raise NotCapturable(
                    explain(
                        f"f writes into a tensor of its own while it is evaluated{source_line(node)}",
                        "an f without state (running statistics, counters, caches)",
                        "call .eval(), or keep what changes out of f",
                    )
                )
        return module

    def check(self, captured: Captured) -> None:
        """Evaluate the graph of f at the initial time against f itself."""
        problem = self.problem
        with torch.no_grad(), problem.autocast():
            expected = problem.field(Counts())(self.time, problem.y0.detach().clone())
            values = {"t": self.time, "u": problem.y0.detach()}
            values |= {f"p{i}": x.detach() for i, x in enumerate(self.inputs)}
            values |= {f"c{i}": x for i, x in enumerate(captured.constants)}
            module = captured.graphs["f"]
            named = [values[node.name] for node in module.graph.nodes if node.op == "placeholder"]
            (found,) = fx.Interpreter(module).run(*named)
        scale = expected.abs().max()
        if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(scale.nan_to_num(1.0)), equal_nan=True):
            raise NotCapturable(
                explain(
                    "f gave another value when it was evaluated again",
                    "an f without randomness and without state",
                    "take random numbers and caches out of f, or pass them through args=",
                )
            )


class _Lifted(fx.Interpreter):
    """Runs a graph whose attributes are given as tensors."""

    def __init__(self, module: fx.GraphModule, tensors: dict[str, Tensor]) -> None:
        super().__init__(module)
        self._tensors = tensors

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "get_attr":
            return self._tensors[n.name]
        return super().run_node(n)


def _slots(problem: ODEProblem, inputs: Sequence[Tensor]) -> tuple[Slot, ...]:
    names: dict[int, str] = {}
    for thing in (*problem.callables, *problem.arguments.leaves):
        if isinstance(thing, torch.nn.Module):
            for name, parameter in thing.named_parameters():
                names.setdefault(id(parameter), name)
    count = len(problem.arguments.tensors) if len(inputs) else 0
    data = {id(x) for x in problem.arguments.leaves if isinstance(x, Tensor) and not x.requires_grad}
    slots, offset = [], 0
    for i, x in enumerate(inputs):
        default = (
            f"args tensor {i}" if i < count else "data in args" if id(x) in data else f"captured tensor {i - count}"
        )
        slots.append(Slot(names.get(id(x), default), tuple(x.shape), offset))
        offset += x.numel()
    return tuple(slots)
