"""What is remembered of a field, and when it is forgotten; no Julia is needed."""

from __future__ import annotations

import functools
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch

from pynode import known_fields
from pynode.capture.capturing import capture
from pynode.dependencies import Dependencies
from pynode.julia.emitted import EmittedRoute
from pynode.problem import ODEProblem
from pynode.solution import Counts
from pynode.watch import Watch

Y0 = torch.ones(2, dtype=torch.float64)


def found(f, args=()):
    problem = ODEProblem(f, Y0, [0.0, 1.0], args)
    return known_fields.dependencies_of(problem, Counts(), None, False, 0.0)


class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.register_buffer("b", torch.ones(2, dtype=torch.float64))
        self.k = 1.0

    def forward(self, t, y, *args):
        return self.k * self.w * self.b * y + sum(args)


def changes(f):
    def replace():
        f.b = 2.0 * f.b

    return {
        "an attribute": lambda: setattr(f, "k", 2.0),
        "a buffer in place": lambda: f.b.mul_(2.0),
        "a buffer replaced": replace,
        "a flag": lambda: f.w.requires_grad_(False),
        "the mode": f.eval,
        "a parameter replaced": lambda: setattr(f, "w", torch.nn.Parameter(f.w.detach().clone())),
    }


@pytest.mark.parametrize("change", list(changes(Scaled())))
def test_a_field_is_known_until_something_it_reaches_changes(change):
    f = Scaled()
    first = found(f)
    assert found(f).known is first.known
    with torch.no_grad():
        f.w.add_(1.0)  # as an optimiser does: parameters come anew with every solve
    assert found(f).known is first.known
    with torch.no_grad():
        changes(f)[change]()
    assert found(f).known is not first.known


def test_closures_and_globals_count():
    box, scale = [1.0], torch.ones(2, dtype=torch.float64)
    f = lambda t, y: box[0] * scale * y  # noqa: E731
    watch = Watch([f])
    assert watch.unchanged()
    box[0] = 2.0
    assert not watch.unchanged()
    watch = Watch([f])
    scale = 2.0 * scale
    assert not watch.unchanged()


def test_differentiable_arguments_may_be_others_every_time():
    f = Scaled()
    make = lambda: (torch.randn(2, dtype=torch.float64, requires_grad=True) * 2.0,)  # noqa: E731
    first = found(f, make())
    args = make()
    second = found(f, args)
    assert second.known is first.known
    assert second.arguments[0] is args[0]
    gone = weakref.ref(args[0])
    del args, second
    gc.collect()
    assert gone() is None  # nor is its history kept


def test_data_may_be_other_every_time_and_indices_are_part_of_the_program():
    f = Scaled()
    first = found(f, (torch.ones(2, dtype=torch.float64),))
    assert found(f, (torch.zeros(2, dtype=torch.float64),)).known is first.known
    assert found(f, (torch.ones(1, dtype=torch.float64),)).known is not first.known
    whole = torch.ones(2, dtype=torch.int64)
    second = found(f, (whole,))
    assert found(f, (whole,)).known is second.known
    assert found(f, (whole.clone(),)).known is not second.known


def test_data_is_an_input_of_the_graphs():
    f = Scaled()
    x, w = torch.randn(2, dtype=torch.float64), torch.randn(2, dtype=torch.float64, requires_grad=True)
    y0, t = torch.randn(2, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    problem = ODEProblem(f, y0, t, (x, w))
    captured = capture(problem, Dependencies(problem, Counts(), None), data=True)
    assert [slot.name for slot in captured.slots] == ["args tensor 0", "w", "data in args"]
    outputs = captured.graphs["vjp_p"].graph.output_node().args[0]
    assert [node is not None for node in outputs] == [True, True, False]  # nothing is computed for data
    other = torch.randn(2, dtype=torch.float64)
    module = captured.graphs["f"]
    values = {"t": t[0], "u": y0, "a": y0, "p0": w, "p1": f.w, "p2": other}
    values |= {f"c{i}": x for i, x in enumerate(captured.constants)}
    names = [node.name for node in module.graph.nodes if node.op == "placeholder"]
    (value,) = torch.fx.Interpreter(module).run(*(values[name] for name in names))
    assert torch.allclose(value, f(t[0], y0, other, w), rtol=1e-14, atol=0)


def test_fields_made_for_one_solve_are_forgotten():
    w = torch.ones(2, dtype=torch.float64, requires_grad=True)

    def kinds():
        yield lambda t, y: w * y
        yield functools.partial(lambda t, y, k: k * w * y, k=2.0)
        yield Scaled()

    gc.collect()
    before = len(known_fields._ENTRIES)
    for _ in range(5):
        for f in kinds():
            found(f)
    del f
    gc.collect()
    assert len(known_fields._ENTRIES) == before


def test_the_parameter_vector_has_the_precision_of_the_state():
    program = SimpleNamespace(number=1, dtype=torch.float32)
    number, matrix = torch.tensor(0.5, dtype=torch.float64), torch.ones(2, 2)
    for inputs in ([number], [number, matrix]):
        vector = EmittedRoute(program, [], inputs, [True] * len(inputs)).vector()
        assert vector.dtype == torch.float32
        assert vector.tolist() == [0.5, *[1.0] * (vector.numel() - 1)]
    assert EmittedRoute(program, [], [matrix], [True]).vector().data_ptr() != matrix.data_ptr()
