"""GRU-ODE: the recurrent unit it is the flow of, its bounds; jumps that see the error of a prediction."""

from __future__ import annotations

import math

import torch

import pynode
from pynode.julia import source
from pynode.nn import ODERNN, GRUBayesCell, GRUField

F64 = torch.float64


def field(hidden: int = 5) -> GRUField:
    torch.manual_seed(0)
    f = GRUField(hidden).double()
    with torch.no_grad():
        for p in f.parameters():
            p.mul_(3)
    return f


def test_an_euler_step_of_length_one_is_a_gated_recurrent_unit_without_input() -> None:
    f = field()
    h = torch.rand(7, 5, dtype=F64) * 2 - 1
    step = pynode.solve(f, h, [0.0, 1.0], algorithm=pynode.Euler()).ys[-1]
    (w_r, w_u), (b_r, b_u) = f.gates.weight.chunk(2), f.gates.bias.chunk(2)
    r, u = torch.sigmoid(h @ w_r.T + b_r), torch.sigmoid(h @ w_u.T + b_u)
    g = torch.tanh((r * h) @ f.candidate.weight.T + f.candidate.bias)
    torch.testing.assert_close(step, u * h + (1 - u) * g, rtol=0, atol=1e-15)


def test_states_stay_within_one_and_come_back_to_it() -> None:
    f = field()
    inside = torch.rand(50, 5, dtype=F64) * 2 - 1
    sol = pynode.solve(f, inside, torch.linspace(0, 100, 50), rtol=1e-8, atol=1e-10)
    assert sol.ys.abs().max() <= 1 + 1e-7
    far = pynode.solve(f, 3 * inside, torch.linspace(0, 100, 50), rtol=1e-8, atol=1e-10).ys
    outside = (far.abs() - 1).clamp(min=0)
    assert outside[0].max() > 1
    assert (outside[1:] - outside[:-1]).max() <= 1e-7  # never further away
    assert outside[-1].max() < 1e-3


def test_a_jump_sees_observed_channels_only_and_the_error_in_standard_deviations() -> None:
    torch.manual_seed(0)
    predict = torch.nn.Linear(5, 6).double()
    cell = GRUBayesCell(3, 5, predict).double()
    h = torch.randn(2, 5, dtype=F64)
    x = torch.randn(2, 3, dtype=F64)
    mask = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]], dtype=F64)

    def jump(x):
        return cell(torch.cat([x, mask], -1), h)

    assert torch.equal(jump(x), jump(x + 5 * (1 - mask)))
    assert not torch.equal(jump(x), jump(x + mask))
    # With only the weights of the error left, units do not matter: (x, mean, std) scaled alike jump alike.
    with torch.no_grad():
        cell.mix[:, :3] = 0
        before = jump(x)
        predict.weight[:3] *= 4
        predict.bias[:3] *= 4
        predict.bias[3:] += math.log(4)
    torch.testing.assert_close(jump(4 * x), before, rtol=0, atol=1e-14)


def test_with_an_ode_rnn_gradients_agree_over_sensealgs_and_the_field_is_captured() -> None:
    ts = torch.tensor([0.0, 0.4, 1.1, 1.5], dtype=F64)
    x = torch.randn(2, 4, 3, dtype=F64)
    x[0, 1] = x[1, 2, 0] = math.nan
    torch.manual_seed(1)
    predict = torch.nn.Linear(5, 6)
    model = ODERNN(field(), GRUBayesCell(3, 5, predict), 5, rtol=1e-10, atol=1e-12).double()
    found = []
    for sensealg in (
        pynode.DirectAdjoint(),
        pynode.CheckpointedAdjoint(),
        pynode.BacksolveAdjoint(),
        pynode.InterpolatingAdjoint(),
        pynode.GaussAdjoint(),
    ):
        model.flow.sensealg = sensealg
        found.append(torch.autograd.grad(model(ts, x).after.pow(2).sum(), list(model.parameters())))
    for gradients in found[1:]:
        for a, b in zip(gradients, found[0], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)
    assert source(model.flow.f, 0.0, torch.zeros(2, 5, dtype=F64))
    other = ODERNN(GRUField(5), GRUBayesCell(3, 5, torch.nn.Linear(5, 6)), 5, rtol=1e-10, atol=1e-12).double()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(ts, x).after, model(ts, x).after)
