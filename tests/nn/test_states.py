"""Initial states, equations of higher order, and what NeuralODE composes of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import pynode
from pynode.nn import Augment, HigherOrder, InputLayer, NeuralODE, Times

F64 = torch.float64
X = torch.tensor([[0.7, -0.2], [1.1, 0.4]], dtype=F64)
TIGHT = {"rtol": 1e-10, "atol": 1e-10}
#: Fewer than 100 steps, each wrong by less than the tolerance, of fields that do not amplify errors by more than 3.
BOUND = 3e-8


def linear(matrix: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(matrix[0]), len(matrix), bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(matrix))
    return layer


# ------------------------------------------------------------------------------------------------------ states


def test_a_turn_in_the_augmented_plane_flips_the_sign() -> None:
    """What no flow on the line can do: exp(pi J) (x, 0) = (-x, 0)."""
    turn = linear([[0.0, -math.pi], [math.pi, 0.0]])
    ode = NeuralODE(lambda t, y: turn(y), input=Augment(1), output=lambda y: y[..., :1], **TIGHT)
    x = torch.linspace(-2, 2, 5, dtype=F64)[:, None]
    assert (ode(x) + x).abs().max().item() < BOUND


def test_augmentation_of_images_and_of_some_leaves() -> None:
    images = torch.arange(2 * 3 * 2 * 2, dtype=F64).reshape(2, 3, 2, 2)
    out = Augment(2, dim=1)(images)
    assert torch.equal(out[:, :3], images)
    assert torch.equal(out[:, 3:], torch.zeros(2, 2, 2, 2, dtype=F64))
    tree = Augment({"a": 1, "b": 0})({"a": X, "b": X})
    assert torch.equal(tree["b"], X)
    assert torch.equal(tree["a"], torch.cat([X, torch.zeros(2, 1, dtype=F64)], -1))
    both = Augment(1)((X, {"c": X}))
    assert torch.equal(both[1]["c"], tree["a"])


def test_a_learned_initial_state_and_its_gradient() -> None:
    h = linear([[1.0, 2.0], [0.5, 0.0], [0.0, -1.0]])
    ode = NeuralODE(lambda t, y: -y, input=InputLayer(h), **TIGHT)
    assert (ode(X) - h(X) * math.exp(-1)).abs().max().item() < BOUND
    (gradient,) = torch.autograd.grad(ode(X).sum(), h.weight)
    assert (gradient - math.exp(-1) * X.sum(0).expand(3, 2)).abs().max().item() < BOUND
    assert "input.h.weight" in dict(ode.named_parameters())


def test_higher_order_with_zero_and_with_learned_velocities() -> None:
    """q'' = -q: q(t) = q(0) cos t + q'(0) sin t."""
    ts = torch.linspace(0, 2, 5, dtype=F64)
    spring = HigherOrder(lambda t, y: -y[..., :2])
    ode = NeuralODE(spring, input=Augment(2), output=lambda y: y[..., :2], **TIGHT)
    path = ode.trajectory(X, ts)
    assert (path - ts.cos()[:, None, None] * X).abs().max().item() < BOUND

    h = linear([[0.3, 0.0], [1.0, -0.5]])
    ode = NeuralODE(spring, (0.0, 2.0), input=InputLayer(h, keep=True), output=lambda y: y[..., :2], **TIGHT)
    expected = math.cos(2.0) * X + math.sin(2.0) * h(X)
    assert (ode(X) - expected).abs().max().item() < BOUND
    found, exact = (torch.autograd.grad(out.pow(2).sum(), h.weight)[0] for out in (ode(X), expected))
    assert (found - exact).abs().max().item() < 10 * BOUND  # a gradient of squares, of numbers below 5


def test_third_order_sees_its_blocks_and_the_time() -> None:
    """q''' = 6 with q(0) = x, q'(0) = q''(0) = 0: q = x + t^3. And q''' = q + q' + q'': what f is given."""
    ode = NeuralODE(HigherOrder(lambda t, y: 6 + 0 * y[..., :2], order=3), input=Augment(4), **TIGHT)
    q, v, a = ode(X).chunk(3, -1)
    for value, expected in ((q, X + 1), (v, 3 + 0 * X), (a, 6 + 0 * X)):
        assert (value - expected).abs().max().item() < BOUND

    y = torch.arange(6.0, dtype=F64)[None]
    seen = []
    field = HigherOrder(lambda t, y, k: seen.append((t, y, k)) or y[..., :2] * k, order=3)
    slope = field(torch.tensor(0.5), y, 10.0)
    assert seen[0][1] is y
    assert slope.tolist() == [[2.0, 3.0, 4.0, 5.0, 0.0, 10.0]]


def test_some_dimensions_of_higher_order() -> None:
    """p' = -p of first order beside q'' = -q."""

    def f(t, y):
        return -y[..., :2]

    y0 = torch.tensor([[0.9, 0.4, 0.0]], dtype=F64)
    end = NeuralODE(HigherOrder(f, order=2, first=1), (0.0, 1.5), **TIGHT)(y0)
    expected = torch.tensor([[0.9 * math.exp(-1.5), 0.4 * math.cos(1.5), -0.4 * math.sin(1.5)]], dtype=F64)
    assert (end - expected).abs().max().item() < BOUND


def test_higher_order_of_images_equals_that_of_vectors() -> None:
    channels = linear([[0.3, -1.0, 0.2, 0.1], [0.5, 0.4, -0.3, 0.2]])
    convolution = nn.Conv2d(4, 2, 1, bias=False).double()
    with torch.no_grad():
        convolution.weight.copy_(channels.weight[:, :, None, None])
    images = torch.linspace(-1, 1, 2 * 2 * 3 * 3, dtype=F64).reshape(2, 2, 3, 3)
    of_images = NeuralODE(HigherOrder(lambda t, y: convolution(y), dim=1), input=Augment(2, dim=1), **TIGHT)(images)
    pixels = images.permute(0, 2, 3, 1)
    of_pixels = NeuralODE(HigherOrder(lambda t, y: channels(y)), input=Augment(2), **TIGHT)(pixels)
    assert (of_images.permute(0, 2, 3, 1) - of_pixels).abs().max().item() < BOUND


# ------------------------------------------------------------------------------------------------- composition


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.8, dtype=F64))

    def forward(self, t, y, scale):
        return {"q": -self.rate * scale * y["q"]}


def test_input_output_args_trajectory_cost_and_trees_together() -> None:
    """q' = -r s q, integral of q^2: everything has a closed form, and so have the gradients."""
    h, out, scale = linear([[2.0, 1.0]]), linear([[3.0]]), torch.tensor(1.5, dtype=F64, requires_grad=True)
    ode = NeuralODE(
        Scaled(),
        (0.0, 0.5, 1.0),
        input=InputLayer(lambda x: {"q": h(x["p"])}),
        output=lambda y: out(y["q"]),
        running_cost=lambda t, y, scale: scale * y["q"].pow(2).sum(),
        **TIGHT,
    )
    x = {"p": X.clone().requires_grad_()}
    rate = ode.f.rate

    def exact(t):
        return 3 * h(x["p"]) * torch.exp(-rate * scale * t)

    ts = torch.linspace(0, 1, 3, dtype=F64)
    path = ode.trajectory(x, ts, scale)
    assert (path - torch.stack([exact(t) for t in ts])).abs().max().item() < 10 * BOUND
    torch.testing.assert_close(ode(x, scale), path[-1], rtol=0, atol=0)
    sol = ode.solve(x, args=(scale,))
    assert list(sol.ys) == ["q"]
    assert sol.ys["q"].shape == (3, 2, 1)
    cost = (h(x["p"]).pow(2).sum() / (2 * rate)) * (1 - torch.exp(-2 * rate * scale))
    assert abs(sol.running_cost - cost).item() < 10 * BOUND
    for found, expected in ((ode(x, scale).sum(), exact(1.0).sum()), (sol.running_cost, cost)):
        inputs = [x["p"], rate, scale, h.weight]
        for a, b in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
            assert (a - b).abs().max().item() < 100 * BOUND


def test_conditions_come_before_the_other_arguments() -> None:
    seen = {}

    def f(t, y, *args):
        seen["args"] = args
        return -y

    NeuralODE(f, condition=nn.Identity(), algorithm="euler")(X, 3.0)
    assert seen["args"][0].shape == X.shape
    assert seen["args"][1:] == (3.0,)
    NeuralODE(f, condition=[nn.Flatten(0), nn.Identity()], algorithm="euler")(X)
    assert [x.shape for x in seen["args"]] == [(4,), (2, 2)]


def test_the_end_of_time_is_learned() -> None:
    """y' = y, y(0) = 1: dy(T)/dT = e^T, and y(T) = 2 at T = log 2."""
    end = nn.Parameter(torch.tensor(0.3, dtype=F64))
    ode = NeuralODE(lambda t, y: y, (0.0, end), **TIGHT)
    one = torch.ones(1, dtype=F64)
    assert [*ode.state_dict()] == ["t.1"]
    for _ in range(6):  # Newton's method: quadratic from 0.3, errors 0.39, 0.09, 4e-3, 7e-6, 3e-11
        value = ode(one)
        (slope,) = torch.autograd.grad(value.sum(), end)
        assert abs(slope.item() - math.exp(end.item())) < BOUND
        with torch.no_grad():
            end -= (value[0] - 2) / slope
    assert end.item() == pytest.approx(math.log(2), abs=BOUND)
    assert isinstance(ode.t, Times)


def test_all_times_as_one_parameter() -> None:
    ode = NeuralODE(lambda t, y: y, nn.Parameter(torch.tensor([0.2, 1.0], dtype=F64)), **TIGHT)
    (gradient,) = torch.autograd.grad(ode(torch.ones(1, dtype=F64)).sum(), ode.t)
    assert (gradient - math.exp(0.8) * torch.tensor([-1.0, 1.0], dtype=F64)).abs().max().item() < BOUND


def test_a_tensor_among_plain_times_keeps_its_gradient() -> None:
    end = torch.tensor(1.0, dtype=F64, requires_grad=True)
    pynode.solve(lambda t, y: y, torch.ones(1, dtype=F64), [0.0, end], **TIGHT).ys[-1].sum().backward()
    assert end.grad.item() == pytest.approx(math.e, abs=BOUND)


def test_bad_input_is_named() -> None:
    cases = [
        (lambda: Augment(-1), "dims = -1"),
        (lambda: Augment({"a": 1.5}), r"dims\['a'\] = 1.5"),
        (lambda: InputLayer(3), "h is a int"),
        (lambda: HigherOrder(lambda t, y: y, order=0), "order = 0"),
        (lambda: HigherOrder(2), "f is a int"),
        (lambda: HigherOrder(lambda t, y: y)(torch.tensor(0.0), torch.ones(1, 3)), "the state has 3 features"),
        (lambda: Augment({"a": 1})({"b": X}), r"tree\['b'\]"),
        (lambda: NeuralODE(lambda t, y: y, input=3), "input is a int"),
        (lambda: NeuralODE(lambda t, y: y, condition=3), "condition is a int"),
    ]
    for make, message in cases:
        with pytest.raises(pynode.InputError, match=message):
            make()
    with pytest.raises(pynode.FieldError, match=r"f returned \(1, 4\).*2 features"):
        HigherOrder(lambda t, y: y)(torch.tensor(0.0), torch.ones(1, 4))
