"""What a capture holds, and that it does not depend on the caller's modes; refusals name the user's line."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from pynode.capture.capturing import Captured, NotCapturable, capture
from pynode.dependencies import Dependencies
from pynode.problem import ODEProblem
from pynode.solution import Counts


def captured(f: Callable[..., Any], y0: Tensor, args: tuple[Any, ...] = ()) -> Captured:
    problem = ODEProblem(f, y0, [0.3, 1.0], args)
    return capture(problem, Dependencies(problem, Counts(), None))


def placeholders(found: Captured, name: str) -> set[str]:
    return {node.name for node in found.graphs[name].graph.nodes if node.op == "placeholder"}


def perceptron() -> nn.Module:
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2)).double()

    class Autonomous(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.net(y**3)

    return Autonomous()


def test_slots_follow_the_dependencies_with_names() -> None:
    scale = torch.ones(2, dtype=torch.float64, requires_grad=True)
    f = perceptron()
    found = captured(lambda t, y, s: s * f(t, y), torch.ones(3, 2, dtype=torch.float64), (scale,))
    first, *rest = found.slots
    assert (first.name, first.shape, first.offset) == ("args tensor 0", (2,), 0)
    assert sorted(x.shape for x in rest) == sorted(tuple(x.shape) for x in f.parameters())
    assert [b.offset - a.offset for a, b in itertools.pairwise(found.slots)] == [x.size for x in found.slots[:-1]]
    assert [x.name for x in captured(f, torch.ones(3, 2).double()).slots][:2] == ["net.0.weight", "net.0.bias"]
    assert found.parameters_size == 29


def test_a_field_without_time_has_no_time_in_any_graph() -> None:
    found = captured(perceptron(), torch.ones(3, 2, dtype=torch.float64))
    assert not found.has_t
    assert all("t" not in placeholders(found, name) for name in found.graphs)
    assert found.graphs["vjp_t"].graph.output_node().args == ([None],)
    assert captured(lambda t, y: t * y, torch.ones(3)).has_t


def test_graphs_hold_nothing_that_is_not_needed() -> None:
    found = captured(perceptron(), torch.ones(3, 2, dtype=torch.float64))
    assert "a" not in placeholders(found, "f")
    assert placeholders(found, "vjp") == {"u", "a", "p0", "p1", "p2"}  # the last bias has no part in it
    for module in found.graphs.values():
        calls = [(n.target, str(n.args), str(n.kwargs)) for n in module.graph.nodes if n.op == "call_function"]
        assert len(calls) == len(set(calls))


def test_parameters_are_found_behind_closures_and_constants_are_told_apart() -> None:
    weight = torch.randn(2, 2, requires_grad=True)
    captured_product = torch.randn(2, requires_grad=True) * 2
    fixed = torch.randn(2)
    found = captured(lambda t, y: y @ weight + captured_product * fixed, torch.ones(3, 2))
    assert sorted(slot.shape for slot in found.slots) == [(2,), (2, 2)]
    assert [x.tolist() for x in found.constants] == [fixed.tolist()]


def test_what_depends_on_constants_only_is_computed_ahead() -> None:
    fixed = torch.randn(2, 2)
    found = captured(lambda t, y: y @ (fixed @ fixed).exp() + torch.arange(2), torch.ones(3, 2))
    assert torch.equal(found.constants[0], (fixed @ fixed).exp()) or torch.equal(
        found.constants[1], (fixed @ fixed).exp()
    )
    targets = {str(node.target) for node in found.graphs["f"].graph.nodes if node.op == "call_function"}
    assert "aten.exp.default" not in targets


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_the_callers_mode_does_not_matter(mode: Callable[[], Any]) -> None:
    f = perceptron()
    y0 = torch.ones(3, 2, dtype=torch.float64)
    expected = captured(f, y0)
    problem = ODEProblem(f, y0, [0.3, 1.0])
    dependencies = Dependencies(problem, Counts(), None)
    with mode():
        found = capture(problem, dependencies)
    for name, module in expected.graphs.items():
        assert str(found.graphs[name].graph) == str(module.graph)


def test_graphs_evaluate_to_torchs_derivatives() -> None:
    f = perceptron()
    y = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    a = torch.randn(6, dtype=torch.float64)
    found = captured(f, y.detach())
    expected = torch.autograd.grad(f(torch.tensor(0.0), y).reshape(-1), y, a)[0].reshape(-1)
    values = {"u": y.detach().reshape(-1), "a": a, **{f"p{i}": x.detach() for i, x in enumerate(f.parameters())}}
    module = found.graphs["vjp"]
    named = [values[node.name] for node in module.graph.nodes if node.op == "placeholder"]
    torch.testing.assert_close(fx.Interpreter(module).run(*named)[0], expected)


def test_without_products_the_graph_of_f_is_the_same() -> None:
    problem = ODEProblem(perceptron(), torch.ones(3, 2, dtype=torch.float64), [0.3, 1.0])
    dependencies = Dependencies(problem, Counts(), None)
    alone, joint = (capture(problem, dependencies, products=x) for x in (False, True))
    assert list(alone.graphs) == ["f"]
    assert str(alone.graphs["f"].graph) == str(joint.graphs["f"].graph)


def test_a_field_that_python_randomness_changes_is_refused() -> None:
    import random

    with pytest.raises(NotCapturable, match="another value"):
        captured(lambda t, y: y * random.random(), torch.ones(3))


def branches(t: Tensor, y: Tensor) -> Tensor:
    if y.sum() > 0:  # the line that is named
        return y
    return -y


def draws(t: Tensor, y: Tensor) -> Tensor:
    return y + torch.randn_like(y)  # the line that is named


@pytest.mark.parametrize(("f", "word"), [(branches, "needs a value"), (draws, "aten.randn_like")])
def test_a_refusal_names_operator_and_line(f: Callable[[Tensor, Tensor], Tensor], word: str) -> None:
    lines, first = inspect.getsourcelines(f)
    line = first + next(i for i, text in enumerate(lines) if "named" in text)
    with pytest.raises(NotCapturable, match=word) as refusal:
        captured(f, torch.ones(3))
    assert f"test_capture.py:{line}." in str(refusal.value) or f"test_capture.py:{line})" in str(refusal.value)


def test_an_exception_of_the_fields_own_stays_itself() -> None:
    problem = ODEProblem(lambda t, y: {}["missing"], torch.ones(3), [0.0, 1.0])
    with pytest.raises(KeyError, match="missing"):
        capture(problem)
