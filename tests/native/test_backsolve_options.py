"""Options of the backward solve that the gradient tests do not reach."""

from __future__ import annotations

import warnings

import pytest
import torch

import pynode
from pynode.native.adjoints.backward import _largest_rms

T = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)


def solved(f, y0, algorithm=None, t=T, **options):
    return pynode.solve(
        f, y0, t, algorithm=algorithm or pynode.DP5(), sensealg=pynode.BacksolveAdjoint(**options), rtol=1e-7, atol=1e-9
    )


class Steps:
    """Records what an observer sees."""

    def __init__(self):
        self.seen = []

    def step(self, t, y, h):
        self.seen.append((t, y.numel(), h))

    def accepted(self, t, y, h):
        pass

    def rejected(self, t, y, h):
        pass


@pytest.mark.parametrize("end", [1.0, 2 * torch.pi])
def test_a_state_that_starts_or_ends_at_zero_passes_the_reconstruction_check(end):
    w = torch.ones(2, dtype=torch.float64, requires_grad=True)
    y0 = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    sol = solved(lambda t, y: w * torch.cos(t), y0, t=torch.tensor([0.0, end], dtype=torch.float64))
    sol.ys[-1].sum().backward()
    assert torch.allclose(w.grad, torch.sin(torch.tensor(end)).double().expand(2), atol=1e-6)


def test_a_failed_reconstruction_raises_or_warns():
    def gradient(on_mismatch):
        y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
        sol = solved(lambda t, y: -y, y0, pynode.Euler(dt=0.25), on_mismatch=on_mismatch)
        sol.ys[-1].sum().backward()
        return y0.grad

    with pytest.raises(pynode.GradientError, match="cannot be trusted"):
        gradient("raise")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert torch.isfinite(gradient("warn")).all()
    texts = {str(x.message) for x in caught}
    assert len(texts) == 1  # the same every time
    assert "cannot be trusted" in texts.pop()
    with pytest.raises(pynode.InputError, match="on_mismatch"):
        pynode.BacksolveAdjoint(on_mismatch="ignore")


def test_a_nan_in_any_part_is_the_norm():
    parts = (torch.ones(2), torch.tensor([float("nan")]), torch.ones(1))
    assert _largest_rms(parts) != _largest_rms(parts)


def test_step_options_of_the_adjoint_are_its_own():
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    observer = Steps()
    sol = solved(lambda t, y: torch.sin(y), y0, dt0=0.01, dtmax=0.1, tstops=(0.73,), observer=observer)
    sol.ys[-1].sum().backward()
    assert observer.seen[0] == (1.0, 4, pytest.approx(-0.01))
    assert max(-h for _, _, h in observer.seen) <= 0.102
    assert 0.73 in [t for t, _, _ in observer.seen]


def test_a_mesh_of_the_adjoints_own_is_called_for_each_stretch():
    asked = []

    def mesh(t):
        asked.append(t.tolist())
        return torch.linspace(t[0].item(), t[1].item(), 11, dtype=torch.float64)

    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    observer = Steps()
    sol = pynode.solve(
        lambda t, y: -y,
        y0,
        T,
        algorithm=pynode.RK4(dt=0.01),
        sensealg=pynode.BacksolveAdjoint(algorithm=pynode.RK4(mesh=mesh), observer=observer),
    )
    sol.ys[-1].sum().backward()
    assert asked == [[1.0, 0.5], [0.5, 0.0]]
    assert len(observer.seen) == 20
    assert torch.allclose(y0.grad, torch.full_like(y0, 0.36787944), atol=1e-6)


@pytest.mark.parametrize(
    "sensealg", [pynode.DirectAdjoint(), pynode.CheckpointedAdjoint(), pynode.BacksolveAdjoint()], ids=lambda s: s.name
)
def test_a_jump_at_the_start_is_left_on_the_side_of_the_solve(sensealg):
    """A field evaluated at the jump itself would give the derivative of the other side."""
    seen = []

    def f(t, y):
        seen.append(t.item())
        return torch.where(t < 0.5, -1.0, 1.0) + 0.0 * y

    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    sol = pynode.solve(f, y0, torch.tensor([0.5, 0.0], dtype=torch.float64), sensealg=sensealg, d_discontinuities=[0.5])
    assert torch.allclose(sol.ys[-1], torch.full_like(y0, 1.5), atol=1e-12)
    assert 0.5 not in seen
    assert sol.stats.forward.rejected == 0


def test_force_dtmin_goes_on():
    y0 = torch.ones(2, dtype=torch.float64)
    call = {"rtol": 1e-13, "atol": 1e-13, "dtmin": 0.25}
    with pytest.raises(pynode.SolveError, match="dtmin"):
        pynode.solve(lambda t, y: torch.sin(30 * t) * y, y0, T, **call)
    sol = pynode.solve(lambda t, y: torch.sin(30 * t) * y, y0, T, force_dtmin=True, **call)
    assert sol.stats.forward.accepted == 4


def test_allow_unused_gives_zeros():
    unused = torch.ones(3, requires_grad=True)
    w = torch.ones(2, dtype=torch.float64, requires_grad=True)
    y0 = torch.ones(2, dtype=torch.float64)
    for sensealg in (pynode.CheckpointedAdjoint(), pynode.BacksolveAdjoint()):
        sol = pynode.solve(lambda t, y: w * y, y0, T, sensealg=sensealg, params=[w, unused], allow_unused=True)
        found = torch.autograd.grad(sol.ys.sum(), [w, unused])
        assert torch.equal(found[1], torch.zeros(3))
        sol = pynode.solve(lambda t, y: w * y, y0, T, sensealg=sensealg, params=[w, unused])
        with pytest.raises(pynode.GradientError, match="requires a gradient"):
            sol.ys.sum().backward()
