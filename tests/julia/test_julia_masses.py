"""Mass matrices on the Julia backend: states and gradients against closed forms and the torch backend."""

from __future__ import annotations

import pytest
import torch

import pynode
from pynode.julia import runtime

pytestmark = [
    pytest.mark.julia,
    pytest.mark.skipif(not runtime.installed(), reason="juliacall is not installed"),
]

F64 = torch.float64
M = torch.tensor([[2.0, 0.3], [-0.1, 0.5]], dtype=F64)
HALF = torch.diag(torch.tensor([1.0, 0.0], dtype=F64))
#: A problem of index 1 turned so that no row and no column of its mass matrix is zero.
LEFT = torch.tensor([[1.0, 0.4], [-0.7, 1.2]], dtype=F64)
RIGHT = torch.tensor([[0.9, -0.5], [0.3, 1.1]], dtype=F64)
T = [0.0, 0.5, 2.0]


class Regular(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.k = torch.nn.Parameter(torch.tensor([1.3, 0.7], dtype=F64))

    def forward(self, t, y):
        return torch.stack([-self.k[0] * y[0] * y[1], torch.sin(y[0]) - self.k[1] * y[1] + t])


class Algebraic(torch.nn.Module):
    """``x' = -a x z``, ``0 = z - x^2 - b``: ``x' = -a x^3 - a b x``, whose ``x^-2`` is linear."""

    def __init__(self, turned: bool = False) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(1.0, dtype=F64))
        self.b = torch.nn.Parameter(torch.tensor(1.0, dtype=F64))
        self.turned = turned

    def forward(self, t, y):
        x, z = (RIGHT @ y if self.turned else y).unbind()
        f = torch.stack([-self.a * x * z, z - x**2 - self.b])
        return LEFT @ f if self.turned else f

    def exact(self, t, x0):
        u = (x0**-2 + 1.0 / self.b) * torch.exp(2.0 * self.a * self.b * (t - t[0])) - 1.0 / self.b
        y = torch.stack([u**-0.5, 1.0 / u + self.b], dim=-1)
        return torch.linalg.solve(RIGHT, y.mT).mT if self.turned else y

    def mass(self):
        return LEFT @ HALF @ RIGHT if self.turned else HALF


def relative(found, expected):
    return max(((x - y).norm() / y.norm()).item() for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ["Rodas5P", "FBDF", "KenCarp4", "TRBDF2"])
def test_a_regular_matrix(name):
    """The problem solved for dy/dt by hand, at a tolerance where the loose methods end in reasonable time: both solves
    are within some hundred tolerances of the truth."""
    model, y0, inverse = Regular(), torch.tensor([1.0, 0.2], dtype=F64), torch.linalg.inv(M)
    options = {"rtol": 1e-6, "atol": 1e-8, "mass_matrix": M, "algorithm": name, "backend": "julia"}
    with torch.no_grad():
        found = pynode.solve(model, y0, T, **options)
        truth = pynode.solve(lambda t, y: inverse @ model(t, y), y0, T, algorithm="vern9", rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(found.ys, truth.ys, rtol=3e-4, atol=3e-4)


@pytest.mark.parametrize("sensealg", [pynode.GaussAdjoint(), pynode.QuadratureAdjoint(), pynode.InterpolatingAdjoint()])
def test_gradients_under_a_regular_matrix(sensealg):
    found = []
    for backend in ("torch", "julia"):
        model = Regular()
        y0 = torch.tensor([1.0, 0.2], dtype=F64, requires_grad=True)
        t = torch.tensor(T, dtype=F64, requires_grad=True)
        options = {"rtol": 1e-8, "atol": 1e-10, "mass_matrix": M, "algorithm": "Rodas5P", "backend": backend}
        ys = pynode.solve(model, y0, t, sensealg=sensealg if backend == "julia" else None, **options).ys
        found.append(torch.autograd.grad((ys.sin() * torch.tensor([[1.0, 2.0]], dtype=F64)).sum(), [y0, t, model.k]))
    assert relative(found[1], found[0]) <= 100 * 1e-8


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", ["Rodas5P", "FBDF"])
def test_a_differential_algebraic_problem(name, turned):
    """States at save points between steps too, and gradients of the initial state, times and parameters: of the closed
    form. ``FBDF``'s errors add up over its many steps."""
    model = Algebraic(turned)
    x0 = torch.tensor(0.8, dtype=F64, requires_grad=True)
    t = torch.tensor(T, dtype=F64, requires_grad=True)
    exact = model.exact(t, x0)
    # SciML's FBDF reduces its first steps to nothing at 1e-8 where the matrix mixes the components, and says so.
    tolerance = 1e-6 if name == "FBDF" and turned else 1e-8
    options = {"rtol": tolerance, "atol": 1e-2 * tolerance, "algorithm": name, "backend": "julia"}
    # The gradient by the algebraic part of the initial state is nothing: it follows from the differential part.
    sol = pynode.solve(model, exact[0].detach(), t, mass_matrix=model.mass(), **options)
    multiple = 1000.0 if name == "FBDF" else 100.0
    torch.testing.assert_close(sol.ys, exact, rtol=0, atol=multiple * tolerance)
    inputs = [x0, model.a, model.b]
    weights = torch.tensor([[1.0, -0.5], [0.3, 2.0], [0.7, 1.1]], dtype=F64)
    expected = torch.autograd.grad((weights * exact.sin()).sum(), [*inputs, t])
    start = model.exact(t.detach(), x0)[0]
    sol = pynode.solve(model, start, t, mass_matrix=model.mass(), **options)
    found = torch.autograd.grad((weights * sol.ys.sin()).sum(), [*inputs, t])
    assert relative(found[:3], expected[:3]) <= multiple * tolerance
    # The state at t[0] is y0 itself, whatever t[0] is; the closed form's depends on differences of times alone.
    assert relative([found[3][1:]], [expected[3][1:]]) <= multiple * tolerance


def test_an_event_of_a_differential_algebraic_problem():
    model, x0 = Algebraic(), torch.tensor(0.8, dtype=F64, requires_grad=True)
    start = torch.stack([x0, x0**2 + model.b])
    sol = pynode.solve(
        model,
        start,
        [0.0, 3.0],
        mass_matrix=HALF,
        algorithm="Rodas5P",
        backend="julia",
        events=pynode.Event(lambda t, y: y[1] - 1.25),  # x^2 = 1/4
        rtol=1e-9,
        atol=1e-11,
    )
    a, b = model.a, model.b
    time = torch.log((4.0 + 1.0 / b) / (x0**-2 + 1.0 / b)) / (2.0 * a * b)
    assert sol.events[0].t.item() == pytest.approx(time.item(), abs=1e-7)
    found = torch.autograd.grad(sol.events[0].t, [x0, a])
    expected = torch.autograd.grad(time, [x0, a])
    assert relative(found, expected) <= 1e-6


def test_a_running_cost_beside_a_mass_matrix():
    model, x0 = Algebraic(), torch.tensor(1.0, dtype=F64, requires_grad=True)
    sol = pynode.solve(
        model,
        torch.stack([x0, x0**2 + 1.0]),
        T,
        algorithm="Rodas5P",
        backend="julia",
        mass_matrix=HALF,
        running_cost=lambda t, y: y[0] * y[1],
        rtol=1e-8,
        atol=1e-10,
    )
    assert abs(sol.running_cost.item() - (1.0 - sol.ys[-1, 0].item())) < 1e-6  # x' = -x z
    ends = model.exact(torch.tensor(T, dtype=F64), x0)
    found = torch.autograd.grad(sol.running_cost, x0)
    torch.testing.assert_close(found, torch.autograd.grad(x0 - ends[-1, 0], x0), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("name", "mass", "message"),
    [("Rosenbrock23", M, "diagonal"), ("KenCarp4()", HALF, "singular"), ("Tsit5()", M, "no mass matrices")],
)
def test_what_julia_refuses(name, mass, message):
    start = torch.tensor([1.0, 2.0], dtype=F64)
    with pytest.raises(pynode.UnsupportedError, match=message):
        pynode.solve(Algebraic(), start, T, mass_matrix=mass, algorithm=name, backend="julia")
