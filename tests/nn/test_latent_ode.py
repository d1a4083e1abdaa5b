"""LatentODE: the terms of its bound, against closed forms and exact integrals; predictions; missing values."""

from __future__ import annotations

import io
import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

import pynode
from pynode.nn import ODERNN, LatentODE, Recognition
from pynode.nn.latent_ode import standard_normal_kl

NAN = math.nan
F64 = torch.float64


class Linear(torch.nn.Module):
    """``dz/dt = A z``."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.tensor([[-0.3, 1.0], [-1.0, -0.1]], dtype=F64))

    def forward(self, t, z):
        return z @ self.matrix.T


class Fixed(torch.nn.Module):
    """A posterior that does not look at the data."""

    def __init__(self, mean, std) -> None:
        super().__init__()
        self.posterior = Normal(mean, std)

    def forward(self, ts, x):
        return self.posterior


def series(missing: float = 0.0, batch: int = 3, length: int = 5):
    generator = torch.Generator().manual_seed(3)
    ts = (0.2 + torch.rand(length, generator=generator, dtype=F64)).cumsum(0)
    x = torch.randn(batch, length, 2, generator=generator, dtype=F64)
    x[torch.rand(x.shape, generator=generator) < missing] = NAN
    return ts, x


def model(sensealg=None, field=None, **options) -> LatentODE:
    torch.manual_seed(0)
    rnn = ODERNN(field, torch.nn.GRUCell(5, 6), 6, gap=True, reverse=True, **(options if field else {}))
    encoder = Recognition(rnn, torch.nn.Linear(6, 4))
    decoder = torch.nn.Sequential(torch.nn.Linear(2, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    return LatentODE(encoder, Linear(), decoder, 0.3, sensealg=sensealg, **options).double()


def linear_gaussian():
    """A model whose decoder is linear, and the matrix of all its observations: ``x = H z0 + noise``."""
    ts, x = series(missing=0.3)
    posterior = torch.full((3, 2), 0.2, dtype=F64), torch.full((3, 2), 0.5, dtype=F64)
    decoder = torch.nn.Linear(2, 2, bias=False).double()
    latent = LatentODE(
        Fixed(*posterior), Linear(), decoder, torch.tensor([0.3, 0.7], dtype=F64), rtol=1e-10, atol=1e-12
    )
    flows = torch.stack([torch.linalg.matrix_exp(latent.flow.f.matrix.detach() * (t - ts[0])) for t in ts])
    return ts, x, latent, decoder.weight.detach() @ flows


def test_the_kl_term_is_torchs_and_that_of_a_monte_carlo_mean() -> None:
    torch.manual_seed(0)
    q = Normal(torch.randn(3, 2, dtype=F64), torch.rand(3, 2, dtype=F64) + 0.1)
    prior = Normal(torch.zeros(3, 2, dtype=F64), torch.ones(3, 2, dtype=F64))
    torch.testing.assert_close(standard_normal_kl(q), kl_divergence(q, prior), rtol=1e-13, atol=1e-13)
    z = q.rsample((100_000,))
    draws = q.log_prob(z) - prior.log_prob(z)
    distance = (draws.mean(0) - standard_normal_kl(q)).abs()
    assert (distance < 5 * draws.std(0) / math.sqrt(len(z))).all()
    ts, x = series()
    latent = model()
    torch.testing.assert_close(
        latent.elbo(ts, x).kl, kl_divergence(latent.encode(ts, x), Normal(0.0, 1.0)).sum(-1), rtol=1e-12, atol=0
    )


def test_the_likelihood_term_against_its_expectation_in_closed_form() -> None:
    """With a linear field and decoder ``E_q log p(x | z0)`` is known; the estimate is within its standard error."""
    ts, x, latent, observe = linear_gaussian()
    mean, std = latent.encoder.posterior.mean, latent.encoder.posterior.stddev
    predicted = torch.einsum("tcl,bl->btc", observe, mean)
    spread = torch.einsum("tcl,bl->btc", observe**2, std**2)
    noise = latent.noise_std
    terms = -0.5 * ((x - predicted) ** 2 + spread) / noise**2 - noise.log() - 0.5 * math.log(2 * math.pi)
    expected = terms.nan_to_num(0.0).sum((1, 2))
    torch.manual_seed(0)
    draws = latent.log_likelihood(ts, x, latent.encode(ts, x).sample((4000,)))
    assert ((draws.mean(0) - expected).abs() < 5 * draws.std(0) / math.sqrt(4000)).all()
    torch.manual_seed(0)
    torch.testing.assert_close(latent.elbo(ts, x, samples=4000).log_likelihood, draws.mean(0), rtol=1e-9, atol=0)


def test_the_bound_is_below_the_evidence_and_meets_it_at_the_true_posterior() -> None:
    ts, x, latent, observe = linear_gaussian()
    noise = latent.noise_std
    found, evidence = [], []
    exact_mean, exact_cov = [], []
    for row in x:
        seen = ~row.isnan()
        h, r = observe[seen], noise.expand(len(ts), 2)[seen] ** 2
        cov = h @ h.T + torch.diag(r)
        evidence.append(MultivariateNormal(torch.zeros(len(r), dtype=F64), cov).log_prob(row[seen]))
        precision = torch.eye(2, dtype=F64) + h.T @ (h / r.unsqueeze(-1))
        exact_cov.append(torch.linalg.inv(precision))
        exact_mean.append(exact_cov[-1] @ (h.T @ (row[seen] / r)))
    evidence = torch.stack(evidence)
    torch.manual_seed(0)
    found = latent.elbo(ts, x, samples=4000).value()
    assert (found < evidence).all()
    # log p(x) = log p(x | z) + log p(z) - log p(z | x) for every z.
    z = torch.stack(exact_mean) + 0.3
    joint = latent.log_likelihood(ts, x, z) + Normal(0.0, 1.0).log_prob(z).sum(-1)
    posterior = MultivariateNormal(torch.stack(exact_mean), torch.stack(exact_cov)).log_prob(z)
    torch.testing.assert_close(joint - posterior, evidence, rtol=1e-7, atol=1e-7)


def test_the_likelihood_of_a_state_in_the_middle_is_that_of_its_past_and_its_future() -> None:
    """A flow may be entered at any time: the values before it are those of decreasing times."""
    ts, x, latent, _ = linear_gaussian()
    z0 = latent.encode(ts, x).mean
    for cut in range(1, len(ts)):
        z = z0 @ torch.linalg.matrix_exp(latent.flow.f.matrix * (ts[cut] - ts[0])).T
        past = latent.log_likelihood(ts[: cut + 1].flip(0), x[:, : cut + 1].flip(1), z)
        beyond = torch.cat([torch.full_like(x[:, :1], NAN), x[:, cut + 1 :]], 1)
        future = latent.log_likelihood(ts[cut:], beyond, z)
        # Residuals of order one over variances of order 0.1, at solves' tolerance of 1e-10.
        torch.testing.assert_close(past + future, latent.log_likelihood(ts, x, z0), rtol=1e-7, atol=1e-7)


def test_the_value_weights_the_kl_term() -> None:
    ts, x = series()
    torch.manual_seed(0)
    bound = model().elbo(ts, x, samples=3)
    assert torch.equal(bound.value(), bound.log_likelihood - bound.kl)
    assert torch.equal(bound.value(0.0), bound.log_likelihood)
    assert torch.equal(bound.value(0.25), bound.log_likelihood - 0.25 * bound.kl)


def test_predictions_follow_the_flow_at_any_times() -> None:
    ts, x, latent, _ = linear_gaussian()
    for at in (ts, ts[1:] + 0.1, torch.linspace(float(ts[0]), 20.0, 7, dtype=F64), ts[:1], ts[-1:] + 3):
        flows = torch.stack([torch.linalg.matrix_exp(latent.flow.f.matrix * (t - ts[0])) for t in at])
        expected = torch.einsum("cl,tlk,bk->btc", latent.decoder.weight, flows, latent.encoder.posterior.mean)
        torch.testing.assert_close(latent(ts, x, at), expected, rtol=1e-7, atol=1e-8)
        draws = latent(ts, x, at, samples=2)
        assert draws.shape == (2, 3, len(at), 2)
        assert not torch.equal(draws[0], draws[1])
    assert latent.sample(0.0, ts, 5, 2).shape == (5, 5, 2)
    back = latent.decode(torch.ones(1, 2, dtype=F64), 1.0, torch.tensor([0.5, 0.0], dtype=F64))
    ahead = latent.decode(torch.linalg.matrix_exp(-latent.flow.f.matrix) @ torch.ones(2, dtype=F64), 0.0,
                          torch.tensor([0.5], dtype=F64))  # fmt: skip
    torch.testing.assert_close(back[0, :1], ahead, rtol=1e-7, atol=1e-8)


def test_missing_rows_are_as_if_absent() -> None:
    ts, x = series()
    kept = [0, 2, 4]
    gaps = x.clone()
    gaps[:, [1, 3]] = NAN
    latent = model(rtol=1e-10, atol=1e-12)
    torch.manual_seed(5)
    full = latent.elbo(ts, gaps)
    torch.manual_seed(5)
    sparse = latent.elbo(ts[kept], x[:, kept])
    torch.testing.assert_close(full.kl, sparse.kl, rtol=1e-10, atol=0)
    torch.testing.assert_close(full.log_likelihood, sparse.log_likelihood, rtol=1e-8, atol=0)


def test_gradients_agree_over_sensealgs_and_with_finite_differences() -> None:
    ts, x = series(missing=0.3, length=4)

    def bound(latent, values):
        torch.manual_seed(2)
        return latent.elbo(ts, values, samples=2).value()

    def gradients(sensealg):
        latent = model(sensealg, Decay(), rtol=1e-10, atol=1e-12)
        found = torch.autograd.grad(bound(latent, x).sum(), list(latent.parameters()))
        assert all(bool(g.isfinite().all()) for g in found)
        return found

    expected = gradients(pynode.DirectAdjoint())
    for sensealg in (
        pynode.CheckpointedAdjoint(),
        pynode.BacksolveAdjoint(),
        pynode.InterpolatingAdjoint(),
        pynode.GaussAdjoint(),
    ):
        for a, b in zip(gradients(sensealg), expected, strict=True):
            # The likelihood's gradients are of the order of 1 / noise**2; the adjoints' tolerance is 1e-10.
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6 * float(b.abs().max()))
    latent = model(algorithm=pynode.RK4())
    seen = ~x.isnan()
    assert torch.autograd.gradcheck(
        lambda v: bound(latent, torch.full_like(x, NAN).masked_scatter(seen, v)), (x[seen].clone().requires_grad_(),)
    )


class Decay(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rate = torch.nn.Parameter(torch.linspace(0.2, 1.0, 6))

    def forward(self, t, h):
        return -self.rate * torch.tanh(h)


def test_learned_noise_and_state_dict_round_trip() -> None:
    ts, x = series()
    latent, other = model(), model()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1)
    file = io.BytesIO()
    torch.save(latent.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(latent(ts, x, ts), other(ts, x, ts))
    learned = LatentODE(latent.encoder, Linear(), latent.decoder, torch.nn.Parameter(torch.tensor(0.3, dtype=F64)))
    assert "noise_std" in dict(learned.named_parameters())
    learned.elbo(ts, x).value().sum().backward()
    assert learned.noise_std.grad.abs() > 0


def test_bad_input() -> None:
    with pytest.raises(pynode.InputError, match="runs forward"):
        Recognition(ODERNN(None, torch.nn.GRUCell(4, 4), 4), torch.nn.Linear(4, 2))
    with pytest.raises(pynode.InputError, match=r"noise_std = 0\.0"):
        LatentODE(torch.nn.Identity(), Linear(), torch.nn.Identity(), 0.0)
    ts, x = series()
    with pytest.raises(pynode.InputError, match="second last"):
        model().elbo(ts[1:], x)
