"""The built-in problems: their answers where they are known, and that all of them can be solved and differentiated."""

from __future__ import annotations

import pytest
import torch

import pynode
from pynode.bench.fields import spiral
from pynode.errors import InputError
from pynode.problems import PROBLEMS, WeightedLoss, problem_from_name

every_problem = pytest.mark.parametrize("name", PROBLEMS)
analytic = pytest.mark.parametrize("name", [name for name, problem in PROBLEMS.items() if problem.analytic])

EXPECTED = {
    *("linear", "harmonic", "lotka-volterra", "spiral", "vanderpol", "vanderpol-stiff", "robertson", "lorenz", "heat"),
    *("brusselator-1d", "brusselator-2d", "cde"),
}


def test_the_registry_holds_what_was_promised():
    assert set(PROBLEMS) == EXPECTED
    assert all(name == problem.name for name, problem in PROBLEMS.items())
    assert {name for name, problem in PROBLEMS.items() if problem.analytic} == {"linear", "harmonic", "heat"}
    assert {name for name, problem in PROBLEMS.items() if problem.stiff} == {"vanderpol-stiff", "robertson"}
    assert {name for name, problem in PROBLEMS.items() if problem.chaotic} == {"lorenz"}


@every_problem
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_beginning_can_be_solved_and_every_parameter_gets_a_gradient(name, dtype):
    problem = PROBLEMS[name].build(dtype=dtype)
    assert problem.y0.dtype is dtype
    assert {p.dtype for p in problem.field.parameters()} == {dtype}
    start, end = problem.t[0].item(), problem.t[-1].item()
    times = [start, start + (end - start) / 200, start + (end - start) / 100]
    sol = pynode.solve(problem.field, problem.y0, times, rtol=problem.rtol, atol=problem.atol)
    assert sol.ys.shape == (3, *problem.y0.shape)
    gradients = torch.autograd.grad(problem.loss(sol.ys), list(problem.field.parameters()))
    assert all(torch.isfinite(g).all() and g.any() for g in gradients)


@every_problem
def test_a_seed_decides_everything_and_precisions_share_their_numbers(name):
    one, again, single = (PROBLEMS[name].build(seed=3, dtype=d) for d in (torch.float64, torch.float64, torch.float32))
    torch.testing.assert_close(one.y0, again.y0, rtol=0, atol=0)
    for a, b, c in zip(*(x.field.parameters() for x in (one, again, single)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        torch.testing.assert_close(a.float(), c, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["linear", "spiral", "cde"])
def test_another_seed_is_another_problem(name):
    one, other = (PROBLEMS[name].build(seed=seed) for seed in (0, 1))
    assert not torch.equal(one.y0, other.y0)
    assert not any(torch.equal(a, b) for a, b in zip(one.field.parameters(), other.field.parameters(), strict=True))


@analytic
def test_the_analytic_solution_satisfies_the_equation(name):
    problem = PROBLEMS[name].build(seed=1)
    exact = PROBLEMS[name].exact
    jacobian = torch.autograd.functional.jacobian(lambda t: exact(problem.field, problem.y0, t), problem.t)
    states = problem.exact()
    torch.testing.assert_close(states[0], problem.y0, rtol=1e-14, atol=1e-14)
    for i, (t, y) in enumerate(zip(problem.t, states, strict=True)):
        if i:  # moving t[0] moves every span
            torch.testing.assert_close(jacobian[i, :, i], problem.field(t, y), rtol=1e-10, atol=1e-10)


@analytic
def test_solution_and_gradient_agree_with_the_analytic_ones(name):
    problem = PROBLEMS[name].build(seed=1)
    parameters = list(problem.field.parameters())
    found = []
    for solved in (True, False):
        y0 = problem.y0.clone().requires_grad_()
        sol = pynode.solve(problem.field, y0, problem.t, algorithm=pynode.Vern7(), rtol=1e-10, atol=1e-12)
        ys = sol.ys if solved else problem.exact(y0)
        found.append([ys, *torch.autograd.grad(problem.loss(ys), [y0, *parameters])])
    # Every local error is below 1e-10 of the state; perturbations grow less than tenfold in these three.
    bound = 10 * sol.stats.forward.accepted * 1e-10
    for ours, theirs in zip(*found, strict=True):
        assert torch.linalg.vector_norm(ours - theirs) <= bound * torch.linalg.vector_norm(theirs)


def test_a_problem_without_an_answer_says_so():
    with pytest.raises(InputError, match=r"lorenz has no analytic solution.*linear, harmonic, heat"):
        PROBLEMS["lorenz"].build().exact()


def test_the_spiral_is_the_benchmarks():
    problem, case = PROBLEMS["spiral"].build(dtype=torch.float32, seed=2), spiral(2)
    torch.testing.assert_close(problem.y0, case.y0, rtol=0, atol=0)
    for a, b in zip(problem.field.parameters(), case.field.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_the_cde_follows_time_and_sines():
    problem = PROBLEMS["cde"].build(size=4)
    assert sum(p.numel() for p in problem.field.parameters()) == 13_456
    speed = problem.field.control_derivative(torch.tensor(0.3, dtype=torch.float64))
    assert speed.shape == (4, 8)
    assert (speed[:, 0] == 1).all()
    # The mean speed over a common period of all sines is zero.
    ts = 2 * torch.pi * torch.arange(64, dtype=torch.float64) / 64
    mean = torch.stack([problem.field.control_derivative(t) for t in ts])[:, :, 1:].mean(dim=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "shape"), [("linear", (5,)), ("heat", (5,)), ("brusselator-1d", (5, 2)), ("brusselator-2d", (5, 5, 2))]
)
def test_a_size_can_be_chosen(name, shape):
    problem = PROBLEMS[name].build(size=5)
    assert problem.y0.shape == shape
    assert problem.field(problem.t[0], problem.y0).shape == shape


@pytest.mark.parametrize(
    ("options", "message"),
    [({"size": 4}, "harmonic got size = 4"), ({"dtype": torch.float16}, "float32 or torch.float64")],
)
def test_what_cannot_be_built(options, message):
    with pytest.raises(InputError, match=message):
        PROBLEMS["harmonic"].build(**options)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(InputError, match=r"unknown problem 'lorentz'.*lorenz"):
        problem_from_name("lorentz")


def test_every_output_counts_in_the_loss():
    ys = {"a": torch.ones(3, 2, requires_grad=True), "b": torch.ones(3, dtype=torch.complex64, requires_grad=True)}
    gradients = torch.autograd.grad(WeightedLoss(1)(ys), list(ys.values()))
    assert all((torch.view_as_real(g) if g.is_complex() else g).all() for g in gradients)
    double = {key: y.detach().to(torch.complex128 if y.is_complex() else torch.float64) for key, y in ys.items()}
    assert WeightedLoss(1)(double).item() == pytest.approx(WeightedLoss(1)(ys).item(), rel=1e-6)
    assert WeightedLoss(2)(ys) != WeightedLoss(1)(ys)


@pytest.mark.parametrize("name", [name for name, problem in PROBLEMS.items() if problem.formula])
def test_the_formula_is_the_same_field_in_jax(name):
    jax = pytest.importorskip("jax")
    problem = PROBLEMS[name].build(dtype=torch.float32)
    p = {key: x.detach().numpy() for key, x in problem.field.named_parameters()}
    theirs = jax.jit(PROBLEMS[name].jax_field())(0.0, problem.y0.numpy(), p)
    ours = problem.field(problem.t[0], problem.y0).detach()
    torch.testing.assert_close(torch.tensor(theirs.tolist()), ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["spiral", "cde"])
def test_a_network_has_no_formula_for_jax(name):
    with pytest.raises(InputError, match="given in torch only"):
        PROBLEMS[name].jax_field()
