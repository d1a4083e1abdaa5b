"""ODE-RNN: the recurrent network it contains, the flow between its jumps, missing rows, direction of time."""

from __future__ import annotations

import io
import math

import pytest
import torch

import pynode
from pynode.julia import source
from pynode.nn import ODERNN

NAN = math.nan


class Decay(torch.nn.Module):
    """``dh/dt = -rate h``, per unit."""

    def __init__(self, hidden: int = 4) -> None:
        super().__init__()
        self.rate = torch.nn.Parameter(torch.linspace(0.2, 1.0, hidden, dtype=torch.float64))

    def forward(self, t, h):
        return -self.rate * h


def net(f, *, hidden: int = 4, mask: bool = True, gap: bool = False, **options) -> ODERNN:
    torch.manual_seed(0)
    cell = torch.nn.GRUCell(2 * (1 + mask) + gap, hidden).double()
    return ODERNN(f, cell, hidden, mask=mask, gap=gap, **options)


def series(missing: float = 0.0, batch: int = 3, length: int = 6):
    generator = torch.Generator().manual_seed(3)
    ts = (0.2 + torch.rand(length, generator=generator, dtype=torch.float64)).cumsum(0)
    x = torch.randn(batch, length, 2, generator=generator, dtype=torch.float64)
    x[torch.rand(x.shape, generator=generator) < missing] = NAN
    return ts, x


def test_a_zero_field_gives_the_recurrent_network() -> None:
    ts, x = series()
    rnn = torch.nn.GRU(2, 4, batch_first=True).double()
    ode_rnn = net(lambda t, h: torch.zeros_like(h), mask=False)
    ode_rnn.cell.load_state_dict({name.removesuffix("_l0"): value for name, value in rnn.state_dict().items()})
    expected, _ = rnn(x)
    torch.testing.assert_close(ode_rnn(ts, x).after, expected, rtol=0, atol=1e-14)
    without = ODERNN(None, ode_rnn.cell, 4, mask=False)
    assert torch.equal(without(ts, x).after, ode_rnn(ts, x).after)
    assert torch.equal(without(ts, x).before[:, 1:], without(ts, x).after[:, :-1])


@pytest.mark.parametrize("reverse", [False, True])
def test_between_observations_the_state_follows_the_flow(reverse) -> None:
    ts, x = series()
    field = Decay()
    states = net(field, reverse=reverse, rtol=1e-10, atol=1e-12)(ts, x)
    factor = torch.exp(-field.rate * ts.diff().unsqueeze(-1))
    if reverse:  # backward in time what decays grows
        torch.testing.assert_close(states.before[:, :-1], states.after[:, 1:] / factor, rtol=1e-8, atol=1e-9)
        assert states.before[:, -1].abs().max() == 0
    else:
        torch.testing.assert_close(states.before[:, 1:], states.after[:, :-1] * factor, rtol=1e-8, atol=1e-9)
        assert states.before[:, 0].abs().max() == 0


def test_a_reversed_network_without_field_reads_the_rows_backward() -> None:
    ts, x = series(missing=0.4)
    forward, backward = net(None, gap=True), net(None, gap=True, reverse=True)
    a, b = backward(ts, x), forward(-ts.flip(0), x.flip(1))
    torch.testing.assert_close(a.after, b.after.flip(1), rtol=0, atol=0)
    torch.testing.assert_close(a.before, b.before.flip(1), rtol=0, atol=0)


@pytest.mark.parametrize("field", [None, Decay()], ids=["rnn", "ode-rnn"])
@pytest.mark.parametrize("reverse", [False, True])
def test_missing_rows_are_as_if_absent(field, reverse) -> None:
    ts, x = series()
    x[:, :, 1][torch.rand(3, 6, generator=torch.Generator().manual_seed(0)) < 0.5] = NAN
    options = {} if field is None else {"rtol": 1e-10, "atol": 1e-12}
    model = net(field, gap=True, reverse=reverse, **options)
    kept = [0, 2, 5]
    gaps = x.clone()
    gaps[:, [1, 3, 4]] = NAN
    expected = model(ts[kept], x[:, kept]).after
    torch.testing.assert_close(model(ts, gaps).after[:, kept], expected, rtol=0, atol=1e-8)
    assert (model(ts, x).after[:, kept] - expected).abs().max() > 1e-3
    # A row without values asks for the state there: it is the same just before and just after.
    states = model(ts, gaps)
    assert torch.equal(states.before[:, [1, 3, 4]], states.after[:, [1, 3, 4]])


def test_each_sample_jumps_at_its_own_rows() -> None:
    ts, x = series()
    x[0, 2] = NAN
    x[1, 3] = NAN
    states = net(Decay())(ts, x)
    moved = (states.after - states.before).abs().amax(-1) > 0
    expected = torch.ones(3, 6, dtype=torch.bool)
    expected[0, 2] = expected[1, 3] = False
    assert torch.equal(moved, expected)


def test_the_cells_input_holds_values_mask_and_gap() -> None:
    ts = torch.tensor([0.0, 1.0, 3.0, 3.5])
    x = torch.tensor(
        [[[1.0, NAN], [NAN, NAN], [2.0, 3.0], [NAN, 4.0]], [[NAN, NAN], [NAN, 5.0], [NAN, 6.0], [7.0, NAN]]]
    )
    given = []

    class Cell(torch.nn.Module):
        def forward(self, row, h):
            given.append(row)
            return h

    ODERNN(lambda t, h: torch.zeros_like(h), Cell(), 1, gap=True)(ts, x)
    assert given[0].tolist() == [[1, 0, 1, 0, 0], [0, 0, 0, 0, 0]]
    assert given[1].tolist() == [[0, 0, 0, 0, 1], [0, 5, 0, 1, 0]]
    assert given[2].tolist() == [[2, 3, 1, 1, 3], [0, 6, 0, 1, 2]]
    assert given[3].tolist() == [[0, 4, 0, 1, 0.5], [7, 0, 1, 0, 0.5]]


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_agree_over_sensealgs_and_with_finite_differences(reverse) -> None:
    ts, x = series(missing=0.3, length=4)

    def gradients(sensealg):
        model = net(Decay(), reverse=reverse, rtol=1e-10, atol=1e-12, sensealg=sensealg)
        values = x.clone().requires_grad_()
        loss = model(ts, values).after.pow(2).sum()
        *found, values_gradient = torch.autograd.grad(loss, [*model.parameters(), values])
        assert not values_gradient.isnan().any()
        return [*found, values_gradient]

    expected = gradients(pynode.DirectAdjoint())
    for sensealg in (
        pynode.CheckpointedAdjoint(),
        pynode.BacksolveAdjoint(),
        pynode.InterpolatingAdjoint(),
        pynode.GaussAdjoint(),
    ):
        for a, b in zip(gradients(sensealg), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)  # the adjoints' tolerance, 1e-10, with room
    model = net(Decay(), reverse=reverse, algorithm=pynode.RK4(steps=2))
    seen = ~x.isnan()

    def last(values):
        return model(ts, torch.full_like(x, NAN).masked_scatter(seen, values)).after

    assert torch.autograd.gradcheck(last, (x[seen].clone().requires_grad_(),))


def test_the_field_is_captured_and_state_dict_round_trips() -> None:
    ts, x = series()
    model, other = net(Decay()), ODERNN(Decay(), torch.nn.GRUCell(4, 4).double(), 4)
    assert source(model.flow.f, 0.0, torch.zeros(3, 4, dtype=torch.float64))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(model(ts, x).after, other(ts, x).after)


def test_bad_input() -> None:
    with pytest.raises(pynode.InputError, match=r"ODERNN\(None\) got rtol"):
        ODERNN(None, torch.nn.GRUCell(2, 2), 2, rtol=1e-3)
    with pytest.raises(pynode.InputError, match="strictly increasing"):
        net(None)(torch.zeros(6, dtype=torch.float64), series()[1])
