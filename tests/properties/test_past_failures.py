"""Problems that the properties found unsolved, each kept as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import pynode
from pynode.backends import backend_from_name

F64, C128 = torch.float64, torch.complex128
ONE_COMPLEX = (0.5 + 0.2j,)
SENSEALGS = (
    *(pynode.CheckpointedAdjoint(), pynode.DirectAdjoint(), pynode.GaussAdjoint(), pynode.QuadratureAdjoint()),
    *(pynode.InterpolatingAdjoint(), pynode.BacksolveAdjoint(), pynode.ForwardSensitivity()),
)


def _state(form: str) -> tuple[Tensor, ...]:
    z = torch.tensor(ONE_COMPLEX, dtype=C128, requires_grad=True)
    r = torch.tensor([0.7], dtype=F64, requires_grad=True)
    return {"real first": (r, z), "complex first": (z, r), "with a cost": (z,)}[form]


def _solution(form: str, y0: tuple[Tensor, ...], a: Tensor, **options) -> Tensor:
    """A sum over states in which real and complex numbers share a vector of three."""

    def first(t, y):
        r, z = y if form == "real first" else reversed(y)
        found = (-a * r * z.abs(), 1j * a * z * r - z * z.abs())
        return found if form == "real first" else found[::-1]

    times = [0.0, 0.3, 1.0]
    if form == "with a cost":
        sol = pynode.solve(
            lambda t, z: 1j * a * z - z * z.abs(), y0[0], times, running_cost=lambda t, z: z.abs().sum(), **options
        )
        return sol.ys.abs().sum() + sol.running_cost
    sol = pynode.solve(first, y0, times, **options)
    return sum(x.abs().sum() for x in sol.ys)


@pytest.mark.parametrize("form", ["real first", "complex first", "with a cost"])
@pytest.mark.parametrize("name", ["Vern7", "Rodas4"])
def test_complex_numbers_beside_an_odd_number_of_reals(form, name):
    """Raised "Tensor must have a storage_offset divisible by 2", of torch, wherever what is pulled back was a row of a
    matrix with an odd number of columns, or went through a second derivative."""
    a = torch.tensor(0.3, dtype=F64, requires_grad=True)
    options = {"algorithm": name, "rtol": 1e-5, "atol": 1e-5}
    expected = None
    for sensealg in SENSEALGS:
        if backend_from_name("torch").supports(pynode.algorithms.algorithm_from_name(name), sensealg) is not None:
            continue
        y0 = _state(form)
        found = torch.autograd.grad(_solution(form, y0, a, sensealg=sensealg, **options), [*y0, a])
        expected = expected or found
        # Some 50 steps there and back, each within 1e-5 * (1 + 1), of a contracting field.
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=50 * 2e-5)


@pytest.mark.parametrize("form", ["real first", "complex first", "with a cost"])
def test_second_derivatives_of_such_states(form):
    """Against a difference of gradients, whose error is 1e-8 times a third derivative of size 10."""
    y0 = tuple(x.detach() for x in _state(form))

    def slope(at: float, more: bool = False) -> tuple[Tensor, Tensor]:
        a = torch.tensor(at, dtype=F64, requires_grad=True)
        loss = _solution(form, y0, a, algorithm=pynode.RK4(steps=6))
        return torch.autograd.grad(loss, a, create_graph=more)[0], a

    gradient, a = slope(0.3, more=True)
    (second,) = torch.autograd.grad(gradient, a)
    e = 1e-4
    difference = (slope(0.3 + e)[0] - slope(0.3 - e)[0]) / (2 * e)
    torch.testing.assert_close(second, difference, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["RKC", "ROCK2", "ROCK4"])
def test_the_opposite_state_of_an_odd_field_takes_the_same_steps(name):
    """Where the power iteration for the spectral radius started depended on the sign of the state."""
    a = torch.tensor([[-3.0, 1.0], [0.5, -8.0]], dtype=F64)
    y0 = torch.tensor([0.9, 0.4], dtype=F64)
    one, other = (
        pynode.solve(lambda t, y: torch.tanh(a @ y), y, [0.0, 1.0], algorithm=name, rtol=1e-3, atol=1e-3)
        for y in (y0, -y0)
    )
    assert one.stats.forward == other.stats.forward
    assert torch.equal(one.ys, -other.ys)
