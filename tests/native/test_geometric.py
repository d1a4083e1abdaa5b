"""McAte4 and KahanLi8: order, energy over many steps, gradients."""

from __future__ import annotations

import math

import pytest
import torch

import pynode
from pynode import CheckpointedAdjoint, ReversibleAdjoint
from pynode.native.splittings import SPLITTINGS

F64 = torch.float64


class Field(torch.nn.Module):
    """Separable, both halves depending on time; ``cubic`` makes the first one nonlinear in the momenta."""

    def __init__(self, cubic: float) -> None:
        super().__init__()
        self.cubic = cubic
        self.w = torch.nn.Parameter(torch.tensor(1.3, dtype=F64))

    def velocity(self, t, p):
        return p * (1 + 0.3 * self.cubic * torch.sin(2 * t)) + self.cubic * p**3

    def force(self, t, q):
        return -self.w * torch.sin(q) * (1 + 0.2 * torch.cos(3 * t))

    def forward(self, t, y):
        return self.velocity(t, y[1]), self.force(t, y[0])


def start():
    return torch.tensor([0.5, 1.0], dtype=F64), torch.tensor([0.1, -0.3], dtype=F64)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    ("name", "cubic", "order", "steps"),
    [("McAte4", 0.0, 4, (40, 80)), ("McAte4", 0.2, 3, (40, 80)), ("KahanLi8", 0.2, 8, (8, 16))],
)
def test_order_as_a_slope(name, cubic, order, steps, sign):
    splitting, f, times = SPLITTINGS[name], Field(cubic), [0.0, 2.0 * sign]
    assert order == (splitting.general_order or splitting.order if cubic else splitting.order)
    with torch.no_grad():
        exact = torch.cat(pynode.solve(f, start(), times, algorithm="vern9", rtol=1e-13, atol=1e-13).ys, dim=1)[-1]
        errors = [
            (torch.cat(pynode.solve(f, start(), times, algorithm=getattr(pynode, name)(steps=n)).ys, dim=1)[-1] - exact)
            for n in steps
        ]
    assert abs(math.log2(errors[0].abs().max() / errors[1].abs().max()) - order) < 0.4


def pendulum(t, y):
    return y[1], -torch.sin(y[0])


def energies(algorithm, end: float, every: int) -> torch.Tensor:
    y0 = (torch.tensor([1.2], dtype=F64), torch.tensor([0.0], dtype=F64))
    t = torch.linspace(0.0, end, every + 1, dtype=F64)
    q, p = pynode.solve(pendulum, y0, t, algorithm=algorithm, max_steps=200_000).ys
    return (0.5 * p**2 - torch.cos(q))[:, 0]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dt", "bound"), [("VelocityVerlet", 0.1, 1.5e-3), ("McAte4", 0.1, 1e-6)])
def test_the_energy_does_not_drift_over_1e5_steps(name, dt, bound):
    """The error of the energy in the last hundredth of 1e5 steps is that of the first: bounded, no trend. That of RK4
    grows in proportion to the time, to a hundred times what it was.

    Verlet conserves H + h^2 (p^2 cos(q) / 12 - sin(q)^2 / 24) to the next order: here within 0.15 h^2 of H."""
    end = 1e5 * dt
    error = (energies(getattr(pynode, name)(dt=dt), end, 1000) - energies(pynode.RK4(steps=1), 1e-9, 1)[0]).abs()
    assert error.max() < bound
    assert error[-10:].max() < 1.5 * error[1:400].max()
    drifting = energies(pynode.RK4(dt=dt), end / 10, 100)
    drifting = (drifting - drifting[0]).abs()
    assert drifting[-1] > 5.0 * drifting[10]


def test_kahan_li_conserves_the_energy_to_rounding():
    """300 steps of 0.1: an error of the order of h^8 times a constant below 1e-4, and rounding."""
    error = energies(pynode.KahanLi8(dt=0.1), 30.0, 30)
    assert (error - error[0]).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["McAte4", "KahanLi8"])
def test_gradients(name):
    """The same from stored states and from states run backward, and against central differences."""

    def loss(w, sensealg):
        f = Field(0.2)
        f.w.data.fill_(w)
        algorithm = getattr(pynode, name)(steps=5)
        q, p = pynode.solve(f, start(), [0.0, 1.0], algorithm=algorithm, sensealg=sensealg).ys
        return f, (q[-1] * p[-1]).sum()

    gradients = []
    for sensealg in (CheckpointedAdjoint(), ReversibleAdjoint()):
        f, value = loss(1.3, sensealg)
        value.backward()
        gradients.append(f.w.grad.item())
    difference = (loss(1.3 + 1e-5, CheckpointedAdjoint())[1] - loss(1.3 - 1e-5, CheckpointedAdjoint())[1]).item() / 2e-5
    assert gradients[0] == pytest.approx(gradients[1], abs=1e-12)
    assert gradients[0] == pytest.approx(difference, abs=1e-8)
