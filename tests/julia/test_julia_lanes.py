"""Repeated solves take a shortcut: what they give is what the whole way gives, and what has changed is noticed."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

import pynode
from pynode.errors import GradientError, InputError, SolveError
from pynode.julia import lanes, routes, runtime

pytestmark = [
    pytest.mark.julia,
    pytest.mark.skipif(not runtime.installed(), reason="juliacall is not installed"),
]

T = torch.linspace(0.0, 1.0, 4, dtype=torch.float64)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()
        self.sign = 1.0
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.sign * self.scale * self.net(y)


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


@pytest.fixture
def y0() -> Tensor:
    return torch.tensor([[1.0, 0.5], [-0.3, 0.8]], dtype=torch.float64)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of every solve, whether it took the shortcut."""
    found: list[bool] = []

    def watched(*args: Any) -> Any:
        solution = lanes.repeated(*args)
        found.append(solution is not None)
        return solution

    monkeypatch.setattr("pynode.julia.backend.repeated", watched)
    return found


def solve(f: Any, y0: Tensor, t: Any = T, **options: Any) -> pynode.Solution:
    return pynode.solve(f, y0, t, **{"rtol": 1e-8, "atol": 1e-10, "backend": "julia", **options})


def native(f: Any, y0: Tensor, t: Any = T) -> pynode.Solution:
    return pynode.solve(f, y0, t, rtol=1e-10, atol=1e-12)


def gradients(solution: pynode.Solution, *tensors: Tensor) -> tuple[Tensor, ...]:
    weights = torch.arange(1.0, solution.ys.numel() + 1, dtype=torch.float64).reshape(solution.ys.shape)
    return torch.autograd.grad((weights * solution.ys).sum(), tensors)


def same(a: Tensor, b: Tensor) -> bool:
    """Up to rounding: where arrays happen to lie decides which elements are summed together."""
    return bool((a - b).norm() <= 1000 * torch.finfo(a.dtype).eps * b.norm())


def assert_close(found: Tensor, expected: Tensor) -> None:
    """To 100 times the tolerance of the solves."""
    assert expected.norm() > 0
    assert (found - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize(
    "sensealg",
    [pynode.GaussAdjoint(), pynode.QuadratureAdjoint(), pynode.InterpolatingAdjoint(), pynode.BacksolveAdjoint()],
    ids=lambda x: x.name,
)
def test_the_same_numbers_as_the_whole_way(model, y0, taken, sensealg):
    y0.requires_grad_()
    tensors = (y0, *model.parameters())
    first = solve(model, y0, sensealg=sensealg)
    expected = gradients(first, *tensors)
    for _ in range(2):
        again = solve(model, y0, sensealg=sensealg)
        assert same(again.ys, first.ys)
        # Both go to the same reverse solve.
        for a, b in zip(gradients(again, *tensors), expected, strict=True):
            assert same(a, b)
        assert again.stats.forward.accepted == first.stats.forward.accepted
        assert again.stats.forward.nfe == first.stats.forward.nfe - 1  # what f depends on is known already
        assert again.stats.backward == first.stats.backward
        assert again.sensealg == sensealg
        assert torch.equal(again.ts, T)
    assert taken == [False, True, True]


def test_training_in_place_follows_the_parameters(model, y0, taken):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        loss = solve(model, y0).ys[-1].pow(2).sum()
        expected = torch.autograd.grad(native(model, y0).ys[-1].pow(2).sum(), list(model.parameters()))
        optimizer.zero_grad()
        loss.backward()
        for x, g in zip(model.parameters(), expected, strict=True):
            assert_close(x.grad, g)
        assert taken[-1] == (step > 0)
        optimizer.step()


@pytest.mark.parametrize("change", ["flag", "buffer", "in place", "parameter", "frozen"])
def test_what_changed_is_noticed(model, y0, taken, change):
    for _ in range(2):
        solve(model, y0)
    if change == "flag":
        model.sign = -0.5
    elif change == "buffer":
        model.scale = torch.tensor(0.25, dtype=torch.float64)
    elif change == "in place":
        model.scale.mul_(2)
    elif change == "parameter":
        model.net[0].weight = torch.nn.Parameter(torch.ones(8, 2, dtype=torch.float64))
    else:
        model.net[0].weight.requires_grad_(False)
    found = solve(model, y0)
    assert taken == [False, True, False]
    assert_close(found.ys[1:] - y0, native(model, y0).ys[1:] - y0)
    left = [x for x in model.parameters() if x.requires_grad]
    for a, b in zip(gradients(found, *left), gradients(native(model, y0), *left), strict=True):
        assert_close(a, b)


def test_other_options_times_and_states_do_not_share_a_lane(model, y0, taken):
    ask = [
        {},
        {"rtol": 1e-4},
        {"t": torch.linspace(0.0, 2.0, 4, dtype=torch.float64)},
        {"t": T.flip(0)},
        {"algorithm": pynode.DP5()},
        {"dt0": 1e-3},
    ]
    for options in ask:
        found = solve(model, y0, **options)
        assert not taken[-1]
        again = solve(model, y0, **options)
        assert taken[-1]
        assert same(found.ys, again.ys)
    solve(model, y0[:1])
    assert not taken[-1]
    solve(model, y0[:1].float().double().requires_grad_())
    assert not taken[-1]
    with pytest.raises(InputError, match="less than"):
        solve(model, y0.float())  # checked on the whole way
    assert solve(model, y0, t=[0.0, 1.0]).ts.dtype == torch.float64
    again = solve(model, y0, t=[0.0, 1.0])
    assert taken[-1]
    assert again.ts.tolist() == [0.0, 1.0]


def test_dense_output_without_gradients_is_that_of_the_solve(model, y0, taken):
    at = torch.tensor([0.1, 0.77], dtype=torch.float64)
    with torch.no_grad():
        expected = solve(model, y0)(at)
        found = solve(model, y0)
        assert taken == [False, True]
        # Changed since: the solution is still that of the weights it was made with.
        for x in model.parameters():
            x.mul_(3)
        y0.add_(1)
        assert same(found(at), expected)
        assert same(found(at), expected)


def test_dense_output_with_gradients(model, y0, taken):
    at = torch.tensor([0.1, 0.77], dtype=torch.float64, requires_grad=True)
    for _ in range(2):
        found = solve(model, y0)
    assert taken == [False, True]
    tensors = [at, *model.parameters()]
    ours = torch.autograd.grad(found(at).sin().sum(), tensors)
    theirs = torch.autograd.grad(native(model, y0)(at).sin().sum(), tensors)
    for a, b in zip(ours, theirs, strict=True):
        # The interpolant of an order less than the solution: 1e4 tolerances.
        assert (a - b).norm() <= 1e-4 * b.norm()


def test_changes_between_solve_and_backward_are_errors(model, y0, taken):
    for _ in range(2):
        found = solve(model, y0)
    with torch.no_grad():
        model.net[0].weight.mul_(2)
    with pytest.raises(GradientError, match="modified in place"):
        found.ys.sum().backward()
    y0.requires_grad_()
    for _ in range(2):
        found = solve(model, y0)
    with torch.no_grad():
        y0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.ys.sum().backward()
    assert taken == [False, True, False, True]


def test_second_derivatives_are_refused(model, y0, taken):
    y0.requires_grad_()
    for _ in range(2):
        found = solve(model, y0)
    assert taken[-1]
    (first,) = torch.autograd.grad(found.ys[-1].sum(), y0, create_graph=True)
    assert_close(first, torch.autograd.grad(native(model, y0).ys[-1].sum(), y0)[0])
    with pytest.raises(GradientError, match="differentiated again"):
        first.sum().backward()


def test_many_cotangents_at_once_are_refused(model, y0, taken):
    y0.requires_grad_()
    for _ in range(2):
        found = solve(model, y0)
    seeds = torch.eye(4, dtype=torch.float64).reshape(4, 2, 2)
    with pytest.raises(GradientError, match="vmapped"):
        torch.autograd.grad(found.ys[-1], y0, seeds, is_grads_batched=True)


def test_only_the_start_counts(model, y0, taken):
    y0.requires_grad_()
    for _ in range(2):
        found = solve(model, y0)
    ours = torch.autograd.grad(found.ys[0].sum(), [y0, *model.parameters()])
    assert torch.equal(ours[0], torch.ones_like(y0))
    assert all(not g.any() for g in ours[1:])


def test_a_failure_is_told_as_on_the_whole_way(taken):
    def blow_up(t: Tensor, y: Tensor) -> Tensor:
        return y * y

    small, large = (torch.tensor([x], dtype=torch.float64) for x in (0.5, 4.0))
    for _ in range(2):
        solve(blow_up, small)
    assert taken[-1]
    with pytest.raises(SolveError, match=r"t = 0\.25"):
        solve(blow_up, large)
    assert not taken[-1]
    # The lane is still good.
    assert_close(solve(blow_up, small).ys[-1], torch.tensor([1.0], dtype=torch.float64))
    assert taken[-1]


def test_a_gradient_that_is_not_finite_is_an_error(model, y0, taken):
    for _ in range(2):
        found = solve(model, y0)
    assert taken[-1]
    with pytest.raises(SolveError, match="in the reverse solve of GaussAdjoint"):
        (found.ys[-1] * torch.tensor(float("nan"), dtype=torch.float64)).sum().backward()


def test_threads_share_a_lane(model, y0, taken):
    expected = [solve(model, y0 * k).ys for k in (1, 2)]
    wrong: list[int] = []

    def work(k: int) -> None:
        with torch.no_grad():
            for _ in range(50):
                if not same(solve(model, y0 * k).ys, expected[k - 1]):
                    wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sum(taken) >= 90


def test_called_back_fields_have_no_lane(model, y0, taken):
    with torch.no_grad():
        for _ in range(2):
            solve(model, y0)
        with pynode.julia.callbacks():
            called = solve(model, y0)
    assert taken == [False, True, False]
    assert called.stats.forward.nfe > 0


@pytest.mark.parametrize("sensealg", [pynode.GaussAdjoint(), pynode.InterpolatingAdjoint(), pynode.BacksolveAdjoint()])
def test_data_in_args_may_be_other_every_time(model, y0, monkeypatch, sensealg):
    captures: list[int] = []
    capture = routes.capture

    def counted(*args: Any, **options: Any) -> Any:
        captures.append(1)
        return capture(*args, **options)

    monkeypatch.setattr(routes, "capture", counted)

    def field(t: Tensor, y: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return model(t, y) * w + torch.tanh(x)

    w = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    tensors = (w, *model.parameters())
    for seed in range(3):
        x = torch.randn(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        theirs = pynode.solve(field, y0, T, args=(x, w), rtol=1e-10, atol=1e-12)
        expected = gradients(theirs, *tensors)
        ours = solve(field, y0, args=(x, w), sensealg=sensealg)
        assert_close(ours.ys, theirs.ys)
        x.zero_()  # the solve has a copy
        for a, b in zip(gradients(ours, *tensors), expected, strict=True):
            assert_close(a, b)
    assert len(captures) == 1
