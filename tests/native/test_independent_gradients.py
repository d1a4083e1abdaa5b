"""Gradients of independent stepping: exact for the steps of every row."""

from __future__ import annotations

import pytest
import torch
from test_independent import KINDS, LENGTHS, NAN, TIMES, rows, solve, vanderpol
from torch.func import grad

import pynode
from pynode import PerSample

F64 = torch.float64
every_kind = pytest.mark.parametrize("name", KINDS)


class Field(torch.nn.Module):
    """A parameter that all rows share beside an argument of each."""

    def __init__(self) -> None:
        super().__init__()
        self.strength = torch.nn.Parameter(torch.tensor([0.9, 1.2], dtype=F64))

    def forward(self, t, y, mu, shift):
        return vanderpol(t, y, mu) * self.strength + shift


def inputs() -> tuple[torch.Tensor, ...]:
    y0, mu = rows()
    shift = torch.tensor([0.1, -0.2], dtype=F64)
    return tuple(x.requires_grad_() for x in (y0, mu, shift, TIMES.clone()))


def weighted(ys):
    """A loss on the states that there are."""
    weights = torch.sin(torch.arange(ys.numel(), dtype=F64)).view(ys.shape)
    return torch.where(torch.isnan(ys), 0.0, ys * weights).sum()


def gradients(f, sensealg, given, **options):
    y0, mu, shift, t = given
    sol = solve(f, y0, t, PerSample(mu), shift, sensealg=sensealg, **options)
    return sol, torch.autograd.grad(weighted(sol.ys), [*given, *f.parameters()])


@every_kind
def test_the_replayed_adjoint_equals_torchs_tape(name):
    options = {"algorithm": name, "rtol": 1e-4, "atol": 1e-6}
    found = gradients(Field(), pynode.CheckpointedAdjoint(), inputs(), **options)
    taped = gradients(Field(), pynode.DirectAdjoint(), inputs(), **options)
    torch.testing.assert_close(found[0].ys, taped[0].ys, rtol=1e-13, atol=1e-13, equal_nan=True)
    for one, other in zip(found[1], taped[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        assert one.abs().max() > 0


@every_kind
def test_gradients_are_those_of_a_loop_of_single_solves(name):
    """Times too: a row of zero length has one time, on which its state does not depend; what repeats the last time is
    that time."""
    options = {"algorithm": name, "rtol": 1e-4, "atol": 1e-6}
    f, given = Field(), inputs()
    y0, mu, shift, t = given
    _, found = gradients(f, pynode.CheckpointedAdjoint(), given, **options)
    columns = []
    for b, length in enumerate(LENGTHS):
        if length == 1:
            columns.append(y0[b].expand(4, 2))
            continue
        ys = pynode.solve(f, y0[b], t[b, :length], args=(mu[b], shift), **options).ys
        columns.append(torch.cat([ys, (ys[-1:] if b == 2 else ys[-1:].detach() * NAN).expand(4 - length, 2)]))
    expected = torch.autograd.grad(weighted(torch.stack(columns, 1)), [*given, *f.parameters()])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_gradients_against_finite_differences():
    """At a tolerance of 1e-10 the solution is smooth to about that, so that central differences over 1e-4 are right to
    1e-6 or better. Every entry of every input, times included."""
    f, given = Field(), inputs()
    options = {"rtol": 1e-10, "atol": 1e-10, "algorithm": "Vern7"}
    _, found = gradients(f, None, given, **options)
    delta = 1e-4
    with torch.no_grad():
        for tensor, gradient in zip((*given, f.strength), found, strict=True):
            flat = tensor.view(-1)
            for i in range(flat.numel()):
                if torch.isnan(flat[i]) or (tensor is given[3] and i // 4 in (2, 3)):
                    continue  # padding, and times that their padding repeats
                values = []
                for step in (delta, -delta):
                    flat[i] += step
                    y0, mu, shift, t = given
                    values.append(weighted(solve(f, y0, t, PerSample(mu), shift, **options).ys).item())
                    flat[i] -= step
                assert gradient.view(-1)[i].item() == pytest.approx((values[0] - values[1]) / 2 / delta, abs=2e-6)


def test_shared_times_get_the_sum_of_all_rows():
    y0, mu = rows()
    t = torch.tensor([0.0, 0.5, 2.0], dtype=F64, requires_grad=True)
    own = t.detach().expand(5, 3).clone().requires_grad_()
    (shared,) = torch.autograd.grad(weighted(solve(vanderpol, y0, t, PerSample(mu)).ys), t)
    (each,) = torch.autograd.grad(weighted(solve(vanderpol, y0, own, PerSample(mu)).ys), own)
    torch.testing.assert_close(shared, each.sum(0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sensealg", [pynode.CheckpointedAdjoint(), pynode.DirectAdjoint()], ids=lambda s: s.name)
def test_save_times_have_gradients_of_their_own(sensealg):
    """dL/dt_i = <g_i, f(t_i, y_i)>, to the error of the dense output; t itself is only start and end."""
    y0, mu = rows()
    t = torch.tensor([0.0, 2.0], dtype=F64, requires_grad=True)
    at = torch.tensor([0.0, 0.3, 1.1, 2.0], dtype=F64, requires_grad=True)
    options = {"rtol": 1e-9, "atol": 1e-9, "sensealg": sensealg}
    sol = solve(vanderpol, y0, t, PerSample(mu), saveat=at, **options)
    (found, ends) = torch.autograd.grad(weighted(sol.ys), [at, t])
    weights = torch.sin(torch.arange(40, dtype=F64)).view(4, 5, 2)
    slopes = torch.stack([vanderpol(x, y, mu) for x, y in zip(at.detach(), sol.ys.detach(), strict=True)])
    torch.testing.assert_close(found, (weights * slopes).sum((1, 2)), rtol=1e-5, atol=1e-5)
    assert ends[0] != 0.0
    # The end moves nothing but the last, frozen step: the state at a fixed time does not depend on it, to its error.
    assert abs(ends[1]) < 1e-6


@pytest.mark.parametrize("derivative", [False, True])
def test_dense_output_is_differentiable(derivative):
    def query(sensealg):
        f, given = Field(), inputs()
        y0, mu, shift, t = given
        sol = solve(f, y0, t, PerSample(mu), shift, sensealg=sensealg)
        with torch.no_grad():
            last = torch.where(torch.isnan(t), t[:, 2:3], t)[:, -1:]
            at = t[:, :1] + torch.tensor([0.0, 0.35, 0.8], dtype=F64) * (last - t[:, :1])
        at.requires_grad_()
        values = sol.derivative(at) if derivative else sol(at)
        return values, torch.autograd.grad(weighted(values), [*given, at, *f.parameters()])

    (values, found), (same, taped) = query(None), query(pynode.DirectAdjoint())
    torch.testing.assert_close(values, same, rtol=1e-11, atol=1e-11)
    for one, other in zip(found, taped, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_second_derivatives_through_the_tape():
    y0, mu = (x.requires_grad_() for x in rows())
    sol = solve(vanderpol, y0, TIMES, PerSample(mu), sensealg=pynode.DirectAdjoint())
    (first,) = torch.autograd.grad(weighted(sol.ys), mu, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), mu)
    delta, moved = 1e-5, []
    for step in (delta, -delta):
        shifted = (mu.detach() + step).requires_grad_()
        sol = solve(vanderpol, y0, TIMES, PerSample(shifted), rtol=1e-10, atol=1e-10)
        moved.append(torch.autograd.grad(weighted(sol.ys), shifted)[0])
    torch.testing.assert_close(second, (moved[0] - moved[1]) / 2 / delta, rtol=1e-3, atol=1e-3)
    sol = solve(vanderpol, y0, TIMES, PerSample(mu))
    (first,) = torch.autograd.grad(weighted(sol.ys), mu, create_graph=True)
    with pytest.raises(pynode.GradientError, match="differentiated again"):
        first.sum().backward()


def test_a_failed_row_leaves_the_gradients_of_the_others_alone():
    def blows_up(t, y, k):
        return k * y**2

    def loss(k, keep):
        t = torch.tensor([0.0, 0.4, 1.0], dtype=F64)
        sol = solve(blows_up, torch.ones(len(k), 1, dtype=F64), t, PerSample(k), throw=False)
        return sol.ys[:, keep].sum()

    k = torch.tensor([[0.1], [2.0], [0.3]], dtype=F64, requires_grad=True)
    (found,) = torch.autograd.grad(loss(k, [0, 2]), k)
    (alone,) = torch.autograd.grad(loss(k[[0, 2]], [0, 1]), k)
    torch.testing.assert_close(found, alone, rtol=1e-12, atol=1e-12)
    assert found[1] == 0.0
    with pytest.raises(pynode.GradientError, match="row 1 at save time 2, which is NaN"):
        loss(k, [0, 1, 2]).backward()


def test_only_the_steps_before_the_last_wanted_state_are_repeated():
    y0, mu = rows()
    mu.requires_grad_()
    sol = solve(vanderpol, y0, TIMES, PerSample(mu))
    sol.ys[0].sum().backward()
    assert torch.equal(mu.grad, torch.zeros_like(mu))
    assert sol.stats.backward.nfe == 0
    sol = solve(vanderpol, y0, TIMES, PerSample(mu))
    sol.ys[1, 0].sum().backward()
    assert 0 < sol.stats.backward.accepted < int(sol.row_stats.accepted[0])


def test_a_field_that_changed_is_noticed():
    factor = [1.0]
    y0, mu = rows()
    mu.requires_grad_()
    sol = solve(lambda t, y, m: factor[0] * vanderpol(t, y, m), y0, TIMES, PerSample(mu))
    factor[0] = 1.1
    with pytest.raises(pynode.GradientError, match="other values than before"):
        weighted(sol.ys).backward()


def test_transforms_are_refused():
    y0, mu = rows()

    def loss(m):
        return solve(vanderpol, y0, TIMES, PerSample(m)).ys[0].sum()

    with pytest.raises(pynode.UnsupportedError, match="joint"):
        grad(loss)(mu)


def test_tree_states_and_float32():
    y0 = {"x": torch.ones(3, requires_grad=True), "z": torch.ones(3, 2, dtype=torch.complex64, requires_grad=True)}
    t = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 2.0]])

    def f(t, y):
        return {"x": -y["x"], "z": 1j * t[:, None] * y["z"]}

    found = []
    for sensealg in (pynode.CheckpointedAdjoint(), pynode.DirectAdjoint()):
        sol = solve(f, y0, t, sensealg=sensealg, rtol=1e-4, atol=1e-5)
        loss = (sol.ys["x"][-1] ** 2).sum() + (sol.ys["z"][-1] * (1 + 2j)).real.sum()
        found.append(torch.autograd.grad(loss, [y0["x"], y0["z"]]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    span = t[:, 1] - t[:, 0]
    torch.testing.assert_close(found[0][0], 2 * torch.exp(-2 * span), rtol=1e-3, atol=1e-3)
