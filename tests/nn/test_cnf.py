"""Continuous normalising flows: densities that are known, and what any density has to satisfy."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from flow_fields import F64, Linear, Perceptron
from scipy import stats
from torch import Tensor, nn
from torch.distributions import Gamma, Independent, Laplace, MultivariateNormal, Normal, Poisson

import pynode
from pynode.errors import InputError
from pynode.nn import CNF, ConcatContext, ExactTrace, HutchinsonTrace, JacobianFrobenius, KineticEnergy
from pynode.nn.field_costs import OnFlow

TOLERANCE = 1e-10
TIGHT = {"rtol": TOLERANCE, "atol": TOLERANCE, "algorithm": pynode.Vern7()}
MATRIX = torch.tensor([[0.3, -0.8, 0.1], [0.6, -0.4, 0.2], [0.0, 0.5, 0.2]], dtype=F64)
#: For training: cheap, and as many evaluations in every iteration.
CHEAP = {"algorithm": pynode.RK4(steps=4), "sensealg": pynode.DirectAdjoint()}
#: Local errors below tolerance (1 + |y|), |y| below 10, fewer than 100 steps, errors amplified by no more than
#: exp(|A|) < 5; the base's log-density adds a factor |z| below 10.
BOUND = 100 * 5 * 10 * 11 * TOLERANCE


def points(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def steps_of(cnf: CNF, x: Tensor) -> int:
    return cnf.solve(x).stats.forward.accepted


# ------------------------------------------------------------------------------------------------------ analytic


@pytest.mark.parametrize("t", [(0.0, 1.0), (1.0, 0.0), (-0.5, 0.2)], ids=str)
def test_linear_field_has_its_gaussian_density(t) -> None:
    cnf = CNF(Linear(MATRIX), 3, t=t, **TIGHT)
    x = points(20, 3)
    span = t[1] - t[0]
    flow = torch.linalg.matrix_exp(MATRIX * span)
    covariance = torch.linalg.inv(flow) @ torch.linalg.inv(flow).T
    expected = MultivariateNormal(torch.zeros(3, dtype=F64), covariance).log_prob(x)
    assert steps_of(cnf, x) < 100
    torch.testing.assert_close(cnf.log_prob(x), expected, rtol=0, atol=BOUND)
    z, delta = cnf(x)
    torch.testing.assert_close(z, x @ flow.T, rtol=0, atol=BOUND)
    torch.testing.assert_close(delta, -span * MATRIX.trace().expand(20), rtol=0, atol=BOUND)


def test_rademacher_noise_is_exact_for_a_diagonal_field() -> None:
    diagonal = torch.diag(torch.tensor([0.5, -0.2, 0.3], dtype=F64))
    x = points(20, 3)
    exact = CNF(Linear(diagonal), 3, **TIGHT).log_prob(x)
    estimated = CNF(Linear(diagonal), 3, trace=HutchinsonTrace(), **TIGHT).log_prob(x)
    torch.testing.assert_close(estimated, exact, rtol=0, atol=2 * BOUND)


def test_score_of_a_linear_field() -> None:
    cnf = CNF(Linear(MATRIX), 3, **TIGHT)
    x = points(5, 3).requires_grad_()
    flow = torch.linalg.matrix_exp(MATRIX)
    (score,) = torch.autograd.grad(cnf.log_prob(x).sum(), x)
    torch.testing.assert_close(score, -x.detach() @ flow.T @ flow, rtol=0, atol=BOUND)


def test_a_field_without_state_moves_the_density_as_it_is() -> None:
    cnf = CNF(lambda t, z: torch.cos(t).expand(z.shape), 2, t=(0.0, 2.0), **TIGHT)
    x = points(6, 2)
    base = Independent(Normal(torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64)), 1)
    torch.testing.assert_close(cnf.log_prob(x), base.log_prob(x + math.sin(2.0)), rtol=0, atol=BOUND)


# ------------------------------------------------------------------------------------------------------ consistency


def nonlinear(**options) -> CNF:
    return CNF(Perceptron(3, scale=1.5), 3, **{**TIGHT, **options})


def test_change_is_minus_the_log_determinant_of_the_map() -> None:
    cnf = nonlinear(sensealg=pynode.DirectAdjoint())
    for x in points(3, 3):
        jacobian = torch.autograd.functional.jacobian(lambda x: cnf(x)[0], x)
        assert jacobian.det() > 0
        torch.testing.assert_close(cnf(x)[1], -jacobian.logdet(), rtol=0, atol=BOUND)


@pytest.mark.parametrize("trace", [ExactTrace(), HutchinsonTrace()], ids=str)
def test_there_and_back_again(trace) -> None:
    cnf = nonlinear(trace=trace)
    x = points(8, 3)
    noise = cnf.probes(x)
    z, there = cnf(x, probes=noise)
    again, back = cnf.inverse(z, probes=noise)
    assert there.abs().max() > 0.1
    torch.testing.assert_close(again, x, rtol=0, atol=2 * BOUND)
    torch.testing.assert_close(back, -there, rtol=0, atol=2 * BOUND)


def test_samples_carry_their_log_density() -> None:
    cnf = nonlinear()
    x, log_p = cnf.rsample_and_log_prob(50, generator=torch.Generator().manual_seed(1))
    assert x.shape == (50, 3)
    torch.testing.assert_close(cnf.log_prob(x), log_p, rtol=0, atol=2 * BOUND)
    plain = cnf.sample(50, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(plain, x, rtol=0, atol=2 * BOUND)
    assert not plain.requires_grad


def test_samples_are_reparametrised() -> None:
    matrix = Linear(MATRIX)
    cnf = CNF(matrix, 3, **TIGHT)
    x, log_p = cnf.rsample_and_log_prob(7, generator=torch.Generator().manual_seed(1))
    (moved,) = torch.autograd.grad(x.sum(), matrix.matrix, retain_graph=True)
    z = (x @ torch.linalg.matrix_exp(MATRIX).T).detach()
    own = MATRIX.clone().requires_grad_()
    (expected,) = torch.autograd.grad((z @ torch.linalg.matrix_exp(-own).T).sum(), own)
    torch.testing.assert_close(moved, expected, rtol=0, atol=7 * BOUND)
    # log p(x(z)) = log p_base(z) + tr A
    (change,) = torch.autograd.grad(log_p.sum(), matrix.matrix)
    torch.testing.assert_close(change, 7 * torch.eye(3, dtype=F64), rtol=0, atol=7 * BOUND)


def test_density_integrates_to_one() -> None:
    cnf = CNF(Perceptron(2), 2, rtol=1e-7, atol=1e-7)
    side = torch.linspace(-9, 9, 121, dtype=F64)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        density = cnf.log_prob(grid).exp()
    cell = (side[1] - side[0]).item() ** 2
    base = Normal(0.0, 1.0).log_prob(grid).sum(-1).exp()
    assert 0.5 * cell * (density - base).abs().sum() > 0.2  # it is another density
    # The trapezoidal rule converges faster than any power for a smooth density; what is left is the solver's error of
    # log p, below 100 steps times the tolerance of numbers up to 20.
    assert cell * density.sum().item() == pytest.approx(1.0, abs=100 * 20 * 1e-7)


def test_samples_have_the_density() -> None:
    cnf = CNF(Perceptron(1, scale=2.0), 1, rtol=1e-8, atol=1e-8)
    with torch.no_grad():
        line = torch.linspace(-12, 12, 4801, dtype=F64)
        cumulative = torch.cumulative_trapezoid(cnf.log_prob(line[:, None]).exp(), line)
        samples = cnf.sample(2000, generator=torch.Generator().manual_seed(3)).squeeze(-1)
    found = stats.kstest(samples.numpy(), lambda x: np.interp(x, line[1:].numpy(), cumulative.numpy()))
    assert found.pvalue > 1e-4
    assert stats.kstest(samples.numpy(), "norm").pvalue < 1e-4  # the base's own would not do


# ------------------------------------------------------------------------------------------------------ context


def scaled(t: Tensor, z: Tensor, context: Tensor) -> Tensor:
    """``dz/dt = c z``: a normal distribution of scale ``exp(-c)``."""
    return context * z


def test_context_shapes_broadcast_and_give_their_own_density() -> None:
    cnf = CNF(scaled, 2, **TIGHT).to(F64)
    contexts = torch.tensor([[0.5, -0.2], [0.0, 0.3], [-0.4, 0.1]], dtype=F64)
    x = points(5, 1, 2)
    log_p = cnf.log_prob(x, contexts)
    expected = Normal(torch.zeros(2, dtype=F64), torch.exp(-contexts)).log_prob(x).sum(-1)
    assert log_p.shape == (5, 3)
    torch.testing.assert_close(log_p, expected, rtol=0, atol=BOUND)
    torch.testing.assert_close(cnf.log_prob(x[:, 0], contexts[1]), expected[:, 1], rtol=0, atol=BOUND)
    samples, own = cnf.rsample_and_log_prob(400, contexts, generator=torch.Generator().manual_seed(4))
    assert samples.shape == (400, 3, 2)
    torch.testing.assert_close(cnf.log_prob(samples, contexts), own, rtol=0, atol=2 * BOUND)
    # The variance of n squares of standard normals is 2 / n.
    score = (samples.square().mean(0) * torch.exp(2 * contexts) - 1) / math.sqrt(2 / 400)
    assert score.abs().max() < 5


def test_data_control_is_differentiated_through_the_encoder() -> None:
    table = nn.Embedding(3, 2).to(F64)
    cnf = CNF(scaled, 2, encoder=table, **TIGHT)
    labels = torch.tensor([0, 2, 2, 1])
    x = points(4, 2)
    cnf.log_prob(x, labels).sum().backward()
    rates = table.weight.detach().clone().requires_grad_()
    Normal(torch.zeros(2, dtype=F64), torch.exp(-rates[labels])).log_prob(x).sum().backward()
    torch.testing.assert_close(table.weight.grad, rates.grad, rtol=0, atol=100 * BOUND)


def test_one_field_maps_to_two_targets() -> None:
    """Two Gaussians, learned by one field from labels."""
    torch.manual_seed(0)
    centres, scale = torch.tensor([[2.0, 0.0], [-2.0, 1.0]], dtype=F64), 0.5
    cnf = CNF(ConcatContext(Reading(4, 2)), 2, encoder=nn.Embedding(2, 2).to(F64), **CHEAP)
    optimizer = torch.optim.Adam(cnf.parameters(), lr=3e-2)
    labels = torch.arange(2).repeat(64)
    for _ in range(120):
        x = centres[labels] + scale * torch.randn(128, 2, dtype=F64)
        optimizer.zero_grad()
        (-cnf.log_prob(x, labels).mean()).backward()
        optimizer.step()
    labels = torch.arange(2).repeat(1000)
    x = centres[labels] + scale * torch.randn(2000, 2, dtype=F64)
    truth = Normal(centres[labels], scale).log_prob(x).sum(-1)
    with torch.no_grad():
        right, wrong = cnf.log_prob(x, labels), cnf.log_prob(x, 1 - labels)
        samples = cnf.sample(1000, torch.arange(2))
    # The excess is the Kullback-Leibler divergence from the truth, measured on the same points.
    assert (truth - right).mean() < 0.1
    assert (truth - wrong).mean() > 5
    assert (samples.mean(0) - centres).abs().max() < 0.2
    assert (samples.std(0) / scale - 1).abs().max() < 0.2


class Reading(nn.Module):
    """``net(t, y)`` of more features than it gives."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(inputs + 1, 16), nn.Tanh(), nn.Linear(16, outputs)).to(F64)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(torch.cat([y, t.expand(*y.shape[:-1], 1)], -1))


# ------------------------------------------------------------------------------------------------------ base


def test_any_base_distribution_of_the_shape() -> None:
    base = Independent(Laplace(torch.zeros(3, dtype=F64), torch.ones(3, dtype=F64)), 1)
    cnf = CNF(Linear(MATRIX), 3, base=base, **TIGHT)
    x = points(6, 3)
    expected = base.log_prob(x @ torch.linalg.matrix_exp(MATRIX).T) + MATRIX.trace()
    torch.testing.assert_close(cnf.log_prob(x), expected, rtol=0, atol=BOUND)


class Learned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([0.2, -0.1], dtype=F64))

    def forward(self) -> Independent:
        return Independent(Normal(self.loc, 1.0), 1)


def test_a_base_with_parameters_is_trained_along() -> None:
    cnf = CNF(Linear(torch.zeros(2, 2, dtype=F64)), 2, base=Learned())
    assert "base.loc" in cnf.state_dict()
    x = points(10, 2)
    cnf.log_prob(x).sum().backward()
    torch.testing.assert_close(cnf.base.loc.grad, (x - cnf.base.loc).sum(0).detach(), rtol=0, atol=1e-12)


def test_wrong_arguments_explain_themselves() -> None:
    field = Linear(MATRIX)
    with pytest.raises(InputError, match="Independent"):
        CNF(field, 3, base=Normal(torch.zeros(3), 1.0))
    with pytest.raises(InputError, match="event shape"):
        CNF(field, 3, base=Independent(Normal(torch.zeros(2), 1.0), 1))
    with pytest.raises(InputError, match="one of torch"):
        CNF(field, 3, base=lambda: None)
    with pytest.raises(InputError, match="callable"):
        CNF(None, 3)
    with pytest.raises(InputError, match="event_shape"):
        CNF(field, ())
    with pytest.raises(InputError, match="HutchinsonTrace"):
        CNF(field, 3, trace="hutchinson")
    cnf = CNF(field, 3)
    with pytest.raises(InputError, match=r"shape \(5, 2\)"):
        cnf.log_prob(torch.zeros(5, 2))
    with pytest.raises(InputError, match="int64"):
        cnf.log_prob(torch.zeros(5, 3, dtype=torch.int64))
    with pytest.raises(InputError, match="broadcast"):
        cnf.log_prob(torch.zeros(5, 3), torch.zeros(4, 1))
    with pytest.raises(InputError, match="features"):
        cnf.log_prob(torch.zeros(5, 3), torch.tensor(1.0))
    with pytest.raises(InputError, match="running cost"):
        cnf.log_prob_and_cost(torch.zeros(5, 3))
    with pytest.raises(InputError, match="rsample"):
        CNF(field, 3, base=Independent(Poisson(torch.ones(3)), 1)).rsample_and_log_prob(2)


# ------------------------------------------------------------------------------------------------------ randomness


def test_a_generator_decides_alone_and_leaves_torch_as_it_was() -> None:
    cnf = CNF(Linear(MATRIX), 3, base=Independent(Gamma(torch.ones(3).double() * 2, 1.0), 1), trace=HutchinsonTrace())
    state = torch.random.get_rng_state()
    (a, p), (b, q) = (cnf.rsample_and_log_prob((2, 4), generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(p, q)
    assert torch.equal(state, torch.random.get_rng_state())
    generator = torch.Generator().manual_seed(5)
    first, second = cnf.sample(4, generator=generator), cnf.sample(4, generator=generator)
    assert not torch.equal(first, second)


def test_noise_is_drawn_once_a_solve_and_anew_for_the_next() -> None:
    cnf = CNF(Perceptron(3), 3, trace=HutchinsonTrace())
    drawn = []
    own = cnf.field.forward

    def watched(t, state, probes, *context):
        drawn.append(probes)
        return own(t, state, probes, *context)

    cnf.field.forward = watched
    x = points(4, 3)
    first = cnf.log_prob(x)
    first.sum().backward()
    assert len(drawn) > 10
    assert all(torch.equal(x, drawn[0]) for x in drawn)
    assert not torch.equal(first, cnf.log_prob(x))


# ------------------------------------------------------------------------------------------------------ running costs


@pytest.mark.parametrize("t", [(0.0, 1.0), (1.0, 0.0)], ids=str)
def test_costs_of_a_linear_field(t) -> None:
    matrix = MATRIX * (t[1] - t[0])  # the same map in either direction of time
    field = Linear(matrix)
    kinetic, frobenius = OnFlow(KineticEnergy(field)), OnFlow(JacobianFrobenius(field))
    cnf = CNF(field, 3, t=t, running_cost=lambda *given: (kinetic(*given), frobenius(*given)), **TIGHT)
    x = points(4, 3)
    log_p, (energy, norm) = cnf.log_prob_and_cost(x)
    torch.testing.assert_close(log_p, cnf.log_prob(x), rtol=0, atol=0)
    torch.testing.assert_close(norm, MATRIX.square().sum().expand(4), rtol=0, atol=BOUND)
    nodes, weights = (torch.as_tensor(w, dtype=F64) for w in _gauss_legendre(20))
    rates = [(x @ torch.linalg.matrix_exp(MATRIX * s).T @ MATRIX.T).square().sum(-1) for s in nodes]
    torch.testing.assert_close(energy, (weights[:, None] * torch.stack(rates)).sum(0), rtol=0, atol=10 * BOUND)


def _gauss_legendre(n: int):
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return (nodes + 1) / 2, weights / 2


def test_frobenius_norm_by_noise_is_unbiased() -> None:
    field = Linear(MATRIX)
    count = 4000
    cnf = CNF(field, 3, trace=HutchinsonTrace(), running_cost=JacobianFrobenius(field))
    _, norms = cnf.log_prob_and_cost(points(count, 3), generator=torch.Generator().manual_seed(6))
    score = (norms.mean() - MATRIX.square().sum()) / (norms.std() / math.sqrt(count))
    assert abs(score.item()) < 5


@pytest.mark.parametrize("trace", [pytest.param(ExactTrace(), marks=pytest.mark.slow), HutchinsonTrace()], ids=str)
def test_a_running_cost_attaches_and_trains(trace) -> None:
    """Training with RNODE's costs gives a flow of less energy for nearly the same density."""

    def trained(weight: float) -> tuple[float, float]:
        generator = torch.Generator().manual_seed(0)
        field = Perceptron(2, width=16)
        kinetic, frobenius = OnFlow(KineticEnergy(field)), OnFlow(JacobianFrobenius(field))
        costs = lambda *given: (kinetic(*given), frobenius(*given))  # noqa: E731
        cnf = CNF(field, 2, trace=trace, running_cost=costs, **CHEAP)
        assert [name for name, _ in cnf.named_parameters()] == [f"field.f.{x}" for x, _ in field.named_parameters()]
        optimizer = torch.optim.Adam(cnf.parameters(), lr=2e-2)
        for _ in range(25):
            x = 0.5 * torch.randn(64, 2, dtype=F64, generator=generator) + 1
            log_p, costs = cnf.log_prob_and_cost(x, generator=generator)
            optimizer.zero_grad()
            (-log_p.mean() + weight * sum(x.mean() for x in costs)).backward()
            optimizer.step()
        with torch.no_grad():
            log_p, (energy, _) = cnf.log_prob_and_cost(x, generator=generator)
        return log_p.mean().item(), energy.mean().item()

    (free, most), (held, less) = trained(0.0), trained(0.05)
    assert less < 0.9 * most
    assert held > free - 0.3


# ------------------------------------------------------------------------------------------------------ as a module


def test_state_dict_round_trip_copies_and_pickles() -> None:
    def made(seed: int) -> CNF:
        return CNF(Perceptron(3, seed=seed), 3, t=nn.Parameter(torch.tensor([0.0, 0.7], dtype=F64)))

    cnf, other = made(0), made(1)
    x = points(4, 3)
    assert not torch.equal(cnf.log_prob(x), other.log_prob(x))
    assert list(cnf.state_dict()) == ["t", *(f"field.f.{name}" for name in Perceptron(3).state_dict())]
    other.load_state_dict(cnf.state_dict())
    for twin in (other, copy.deepcopy(cnf), pickle.loads(pickle.dumps(cnf))):
        torch.testing.assert_close(twin.log_prob(x), cnf.log_prob(x), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_both_precisions(dtype) -> None:
    cnf = CNF(Perceptron(3), 3).to(dtype)
    x, log_p = cnf.rsample_and_log_prob(5)
    assert x.dtype == log_p.dtype == cnf.log_prob(x).dtype == dtype
