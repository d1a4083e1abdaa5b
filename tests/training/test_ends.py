"""Regularisers of the end: a random time (STEER), and rest behind it (TisODE)."""

from __future__ import annotations

import pytest
import torch
from regularised_fields import F64, Tanh, check_slope, points
from torch import nn

import pynode
from pynode.errors import InputError
from pynode.nn import CNF, DataControl, NeuralODE, TimeSequential
from pynode.training import RandomEnd, SteadyState


def test_times_are_drawn_in_training_alone() -> None:
    times = RandomEnd((0.0, 0.4, 1.0), 0.3, torch.Generator().manual_seed(0))
    drawn = torch.stack([times() for _ in range(2000)])
    assert (drawn[:, :2] == torch.tensor([0.0, 0.4], dtype=F64)).all()
    ends = drawn[:, 2]
    assert ends.min() >= 0.7
    assert ends.max() <= 1.3
    # A uniform distribution: five standard errors of its mean and of its variance, half_width^2 / 3.
    assert abs(ends.mean() - 1.0) < 5 * 0.3 / (3 * 2000) ** 0.5
    assert abs(ends.var() - 0.03) < 5 * 0.03 * (0.8 / 2000) ** 0.5
    assert times.eval()().tolist() == [0.0, 0.4, 1.0]
    assert RandomEnd((1.0, 0.0)).half_width == 0.5


@pytest.mark.parametrize("make", [lambda t: NeuralODE(Tanh(), t), lambda t: CNF(Tanh(), 2, t=t)], ids=["ODE", "CNF"])
def test_models_take_random_ends(make) -> None:
    x = points(3, 2)
    model = make(RandomEnd((0.0, 1.0), 0.5, torch.Generator().manual_seed(3)))
    end = RandomEnd((0.0, 1.0), 0.5, torch.Generator().manual_seed(3))()[-1].item()
    first = lambda out: out[0] if isinstance(out, tuple) else out  # noqa: E731
    assert abs(end - 1.0) > 1e-3
    assert torch.equal(first(model(x)), first(make((0.0, end))(x)))
    assert torch.equal(first(model.eval()(x)), first(make((0.0, 1.0))(x)))
    assert "RandomEnd" in repr(model)
    single = make(RandomEnd((0.0, 0.1))).to(torch.float32).eval()  # times are not rounded with the parameters
    assert (single.t() if callable(single.t) else single.t).tolist() == [0.0, 0.1]


@pytest.mark.parametrize(
    "make",
    [lambda: RandomEnd((0.0, 1.0), 1.0), lambda: RandomEnd((0.0, 1.0), -0.1), lambda: RandomEnd([0.0])],
    ids=["too wide", "negative", "one time"],
)
def test_bad_times_are_named(make) -> None:
    with pytest.raises(InputError):
        make()


@pytest.mark.parametrize("t", [(0.0, 1.0), (1.0, 0.0)], ids=str)
def test_rest_of_a_linear_field(t) -> None:
    """y' = -k y from x: the components' paths from T to T + S are |x| exp(-k T) (1 - exp(-k S)), in any direction."""
    k = torch.tensor([0.7, -1.1], dtype=F64)
    direction = t[1] - t[0]
    model = NeuralODE(lambda t, y: -direction * k * y, t, rtol=1e-10, atol=1e-10)
    x = points(4, 2)
    for span in (None, 0.4):
        length = 1.0 if span is None else span
        path = (x * torch.exp(-k) * (1 - torch.exp(-k * length))).abs()
        found = SteadyState(span)(model, x, model.solve(x))
        assert found.item() == pytest.approx(path.square().sum(-1).mean().item(), rel=1e-7)


def test_components_that_turn_around_do_not_cancel() -> None:
    model = NeuralODE(lambda t, y: torch.cos(t).expand(y.shape), (0.0, torch.pi / 2), rtol=1e-8, atol=1e-8, dtmax=0.05)
    x = points(3, 1)
    found = SteadyState(2 * torch.pi)(model, x, model.solve(x))  # of |cos| over a period: 4
    # The kink of |cos| in two of the steps of 0.05: an error of their squares.
    assert found.item() == pytest.approx(16.0, abs=2 * 4 * 2 * 0.05**2)


@pytest.mark.parametrize("sensealg", [pynode.DirectAdjoint(), pynode.CheckpointedAdjoint()], ids=lambda s: s.name)
def test_gradients_of_rest_are_those_of_finite_differences(sensealg) -> None:
    # Positive rates, so that no component has a kink.
    field = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2), nn.Softplus()).double()
    with torch.no_grad():
        for i, p in enumerate(field.parameters()):
            p.copy_(points(*p.shape, seed=i))
    model = NeuralODE(
        DataControl(TimeSequential(*field)), condition=nn.Identity(), algorithm=pynode.RK4(steps=4), sensealg=sensealg
    )
    x = points(3, 2).requires_grad_()
    check_slope(lambda: SteadyState()(model, x, model.solve(x)), [x, *model.parameters()])


def test_bad_span_is_named() -> None:
    with pytest.raises(InputError, match="span"):
        SteadyState(-1.0)
