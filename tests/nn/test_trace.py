"""Traces: the exact one against the whole Jacobian, the estimates against their mean and their variance."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from flow_fields import F64, Perceptron
from torch import Tensor

from pynode.errors import FieldError, InputError
from pynode.nn import CNF, ExactTrace, HutchinsonTrace, LogDensity
from pynode.nn.trace import TraceEstimator, contracted, probed

NOW = torch.tensor(0.4, dtype=F64)
EPS = torch.finfo(F64).eps


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


class OfImages(torch.nn.Module):
    """A field on (batch..., 2, 1, 3) that mixes all six numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Perceptron(6)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return self.inner(t, z.flatten(-3)).reshape(z.shape)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
@pytest.mark.parametrize(("f", "event"), [(Perceptron(3), (3,)), (OfImages(), (2, 1, 3))], ids=["vector", "image"])
def test_exact_trace_is_that_of_the_jacobian(f, event, batch) -> None:
    z = drawn(*batch, *event)
    field = LogDensity(f, len(event))
    dz, change = field(NOW, (z, z.new_zeros(batch)), ExactTrace().probes(z, len(event)))
    torch.testing.assert_close(dz, f(NOW, z), rtol=0, atol=0)
    assert change.shape == batch
    size = math.prod(event)
    flat = z.reshape(-1, *event)
    jacobians = [torch.autograd.functional.jacobian(lambda x: f(NOW, x), x).reshape(size, size) for x in flat]
    expected = -torch.stack([x.trace() for x in jacobians]).reshape(batch)
    # Sums of a few dozen products of numbers of size one.
    torch.testing.assert_close(change, expected, rtol=0, atol=64 * EPS)


def test_rademacher_is_unbiased_over_all_its_values() -> None:
    matrix = drawn(3, 3)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)), dtype=F64)
    probes = signs / math.sqrt(len(signs))
    _, products = probed(lambda z: matrix @ z, drawn(3), probes)
    assert contracted(products * probes, 1).item() == pytest.approx(matrix.trace().item(), abs=64 * EPS)


# ------------------------------------------------------------------------------------------------------ statistics

COUNT = 20_000
#: Of a standard normal: two sides together are beyond with probability 6e-7.
SIGMAS = 5.0


@dataclass(frozen=True)
class Shrunk(TraceEstimator):
    """A biased estimator, which the tests must notice."""

    own: HutchinsonTrace

    def probes(self, z: Tensor, event_ndim: int, generator: torch.Generator | None = None) -> Tensor:
        return 0.9 * self.own.probes(z, event_ndim, generator)


def z_score(estimates: Tensor, expected: float | Tensor) -> float:
    """Distance of the mean from what it should be, in its standard deviations as seen."""
    return abs((estimates.mean() - expected) / (estimates.std() / math.sqrt(len(estimates)))).item()


ESTIMATORS = [HutchinsonTrace("rademacher"), HutchinsonTrace("gaussian"), HutchinsonTrace("rademacher", 3)]
each_estimator = pytest.mark.parametrize("trace", ESTIMATORS, ids=str)


def estimates_of_a_matrix(trace: TraceEstimator) -> tuple[Tensor, Tensor]:
    """The matrix, whose trace is not small against the estimate's deviation, and estimates."""
    matrix = drawn(4, 4) + 4 * torch.eye(4, dtype=F64)
    z = torch.zeros(COUNT, 4, dtype=F64)
    probes = trace.probes(z, 1, torch.Generator().manual_seed(1))
    _, products = probed(lambda z: z @ matrix.T, z, probes)
    return matrix, contracted(products * probes, 1)


@each_estimator
def test_estimates_have_the_mean_and_the_variance_of_theory(trace) -> None:
    matrix, estimates = estimates_of_a_matrix(trace)
    assert z_score(estimates, matrix.trace()) < SIGMAS
    symmetric = (matrix + matrix.T) / 2
    squares = symmetric.square().sum()
    if trace.noise == "rademacher":
        squares = squares - symmetric.diagonal().square().sum()
    assert z_score((estimates - matrix.trace()).square(), 2 * squares / trace.samples) < SIGMAS


@each_estimator
def test_a_biased_estimator_is_noticed(trace) -> None:
    matrix, estimates = estimates_of_a_matrix(Shrunk(trace))
    assert z_score(estimates, matrix.trace()) > SIGMAS


def log_densities(trace: TraceEstimator, count: int) -> Tensor:
    """Of one point, each with noise of its own, through a whole solve."""
    x = torch.tensor([0.4, -0.7, 0.2], dtype=F64).expand(count, 3)
    cnf = CNF(Perceptron(3, scale=1.5), 3, trace=trace)
    with torch.no_grad():
        return cnf.log_prob(x, generator=torch.Generator().manual_seed(2))


@each_estimator
def test_log_density_is_unbiased(trace) -> None:
    (exact,) = log_densities(ExactTrace(), 1)
    # The solver's tolerance, 1e-5, is far below a hundredth of the deviation.
    assert z_score(log_densities(trace, COUNT), exact) < SIGMAS


def test_a_biased_log_density_is_noticed() -> None:
    (exact,) = log_densities(ExactTrace(), 1)
    assert z_score(log_densities(Shrunk(HutchinsonTrace()), COUNT), exact) > SIGMAS


# ------------------------------------------------------------------------------------------------------ noise


@each_estimator
def test_noise_comes_from_the_generator_alone(trace) -> None:
    z = torch.zeros(5, 3, dtype=torch.float32)
    state = torch.random.get_rng_state()
    first, second = (trace.probes(z, 1, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(state, torch.random.get_rng_state())
    assert first.dtype == z.dtype
    assert first.shape == (trace.samples, 5, 3)
    assert not torch.equal(first, trace.probes(z, 1, torch.Generator().manual_seed(8)))


def test_wrong_estimators_explain_themselves() -> None:
    with pytest.raises(InputError, match="rademacher"):
        HutchinsonTrace("uniform")
    with pytest.raises(InputError, match="integer >= 1"):
        HutchinsonTrace(samples=0)


def test_a_field_of_another_shape_explains_itself() -> None:
    with pytest.raises(FieldError, match=r"shape \(4, 2\)"):
        CNF(lambda t, z: z[:, :2], 3).log_prob(torch.zeros(4, 3))
