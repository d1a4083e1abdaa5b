"""NeuralCDE: analytic solutions, invariance under reparametrisation, jumps at knots, gradients."""

from __future__ import annotations

import io
import math

import pytest
import torch

import pynode
from pynode.controls import (
    HermiteControl,
    LinearControl,
    LogSignatureControl,
    NaturalCubicControl,
    RectilinearControl,
    with_time,
)
from pynode.julia import source
from pynode.nn import LieBracketField, MatrixField, NeuralCDE

SMOOTHING = [LinearControl, HermiteControl, NaturalCubicControl]
EVERY = [*SMOOTHING, RectilinearControl]
EPS = torch.finfo(torch.float64).eps


def series(seed: int = 0, batch: int = 3, length: int = 7, missing: float = 0.0):
    generator = torch.Generator().manual_seed(seed)
    ts = (0.3 + torch.rand(length, generator=generator, dtype=torch.float64)).cumsum(0)
    x = torch.randn(batch, length, 2, generator=generator, dtype=torch.float64)
    x[torch.rand(x.shape, generator=generator) < missing] = math.nan
    return ts, x


class Constant(torch.nn.Module):
    """``dz = B dX``: the state is the path, mapped linearly."""

    def __init__(self, hidden: int, channels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.matrix = torch.nn.Parameter(torch.randn(hidden, channels, dtype=torch.float64))

    def forward(self, t, z):
        return self.matrix.expand(*z.shape[:-1], -1, -1)


class Rotations(torch.nn.Module):
    """``dz = sum_i w_i J z dX_i`` with commuting rotations: z turns by the angle ``w . (X(t) - X(t0))``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.speeds = torch.nn.Parameter(torch.linspace(0.5, 1.5, channels, dtype=torch.float64))

    def forward(self, t, z):
        turned = torch.stack([-z[..., 1], z[..., 0]], -1)
        return turned.unsqueeze(-1) * self.speeds


def model(channels: int, hidden: int = 4, **options) -> NeuralCDE:
    torch.manual_seed(1)
    cde = NeuralCDE(
        MatrixField(hidden, channels, width=8),
        torch.nn.Linear(channels, hidden),
        torch.nn.Linear(hidden, 2),
        **{"rtol": 1e-9, "atol": 1e-11, **options},
    )
    return cde.double()


@pytest.mark.parametrize("make", EVERY)
def test_a_constant_field_maps_the_path_exactly(make) -> None:
    """Tsit5 integrates the pieces' derivatives, quadratics at most, without error: if steps end where they change."""
    ts, x = series(missing=0.3)
    path = make(ts, x)
    field = Constant(3, path.channels)
    cde = NeuralCDE(field, lambda x0: torch.zeros(*x0.shape[:-1], 3, dtype=x0.dtype), rtol=0.1, atol=0.1)
    if make is NaturalCubicControl:  # twice continuously differentiable: no stops of its own
        cde.options = {"tstops": path.knots}
    expected = (path.evaluate(path.knots) - path.start.unsqueeze(-2)) @ field.matrix.T
    found = cde(path, path.knots)
    scale = 10 * path.coefficients.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e3 * EPS * scale)
    assert expected.abs().max() > 1
    if path.jumps:
        # The same without the jumps is wrong by much more: they are what makes it exact.
        blind = pynode.solve(
            cde.field, found[:, 0], path.knots[:: len(path.knots) - 1], args=(path.knots, path.coefficients),
            rtol=0.1, atol=0.1,
        )  # fmt: skip
        assert (blind.ys[-1] - expected[:, -1]).abs().max() > 1e6 * EPS * scale


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("tolerance", [1e-5, 1e-8])
def test_a_linear_cde_turns_by_the_increments_of_its_path(make, tolerance) -> None:
    ts, x = series(missing=0.3)
    path = make(ts, x)
    field = Rotations(path.channels)
    z0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    cde = NeuralCDE(field, lambda x0: z0.expand(*x0.shape[:-1], 2), rtol=tolerance, atol=tolerance)
    sol = cde.solve(path)
    angle = (path.evaluate(path.knots) - path.start.unsqueeze(-2)) @ field.speeds
    expected = torch.stack([angle.cos(), angle.sin()], -1).movedim(-2, 0)
    # Rotations amplify nothing: local errors of at most 2 * tolerance (|z| = 1) in the RMS norm over the batch add up.
    bound = sol.stats.forward.accepted * 2 * tolerance * math.sqrt(expected[0].numel())
    assert (sol.ys - expected).abs().max() < bound


def test_time_may_run_through_the_path_at_any_speed() -> None:
    ts, x = series()
    other = torch.exp(ts / 2) + torch.tensor([0.0, 1, 2, 3, 5, 8, 13], dtype=ts.dtype)
    x = with_time(ts, x)  # the path's own time, whatever the grid
    cde = model(3)
    a, b = cde(LinearControl(ts, x), ts), cde(LinearControl(other, x), other)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-7)  # 100 times the tolerance: growth and number of steps
    for make in (HermiteControl, NaturalCubicControl):  # cubics keep their form under affine maps only
        a, b = cde(make(ts, x)), cde(make(3 * ts - 5, x))
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)
    assert (cde(LinearControl(ts, x)) - cde(LinearControl(ts, x + ts[:, None]))).abs().max() > 1e-3


def test_missing_rows_of_a_rectilinear_path_are_as_if_absent() -> None:
    ts, x = series()
    kept = [0, 1, 4, 6]
    gaps = x.clone()
    gaps[:, [2, 3, 5]] = math.nan
    cde = model(3)
    sparse, full = RectilinearControl(ts[kept], x[:, kept]), RectilinearControl(ts, gaps)
    a, b = cde(sparse, sparse.observed), cde(full, full.observed)
    torch.testing.assert_close(a, b[:, kept], rtol=0, atol=1e-7)


@pytest.mark.parametrize("make", EVERY)
def test_a_short_sample_is_the_same_alone_and_padded_in_a_batch(make) -> None:
    ts, x = series()
    x[1, 4:] = math.nan
    cde = model(3)

    def path(ts, x):
        return make(ts, x) if make is RectilinearControl else make(ts, with_time(ts, x))

    alone, padded = cde(path(ts[:4], x[1, :4])), cde(path(ts, x))[1]
    torch.testing.assert_close(alone, padded, rtol=0, atol=1e-7)


@pytest.mark.parametrize("make", [LinearControl, HermiteControl, RectilinearControl])
def test_results_up_to_an_observation_ignore_later_ones(make) -> None:
    ts, x = series()
    cde = model(3 if make is RectilinearControl else 2, algorithm=pynode.RK4())
    for i in range(1, 6):
        later = x.clone()
        later[:, i + 1 :] += 1.0
        paths = [make(ts, v) for v in (x, later)]
        a, b = (cde(path, path.observed) for path in paths)
        assert torch.equal(a[:, : i + 1], b[:, : i + 1])
        assert not torch.equal(a[:, i + 1], b[:, i + 1])


@pytest.mark.parametrize("make", EVERY)
def test_fixed_steps_from_knot_to_knot_converge_with_their_order(make) -> None:
    """No step of RK4 runs over a jump: halving the knots' distance divides the error by about 16."""
    ts, x = series(length=5)
    path = make(ts, x / 4)
    cde = model(path.channels)
    exact = cde(path)
    errors = []
    for refine in (2, 4):
        fractions = torch.arange(refine, dtype=ts.dtype) / refine
        inner = path.knots[:-1, None] + path.knots.diff()[:, None] * fractions
        mesh = torch.cat([inner.flatten(), path.knots[-1:]])
        cde.algorithm = pynode.RK4(mesh=lambda t, mesh=mesh: mesh)
        errors.append((cde(path) - exact).abs().max().item())
    assert math.log2(errors[0] / errors[1]) > 3


SENSEALGS = [
    pynode.CheckpointedAdjoint(),
    pynode.BacksolveAdjoint(),
    pynode.InterpolatingAdjoint(),
    pynode.GaussAdjoint(),
    pynode.QuadratureAdjoint(),
]


@pytest.mark.parametrize("make", EVERY)
def test_sensitivity_algorithms_agree(make) -> None:
    ts, x = series(missing=0.2, length=5)
    seen = ~x.isnan()
    x.requires_grad_()

    def gradients(sensealg):
        cde = model(3, sensealg=sensealg)
        path = make(ts, x) if make is RectilinearControl else make(ts, with_time(ts, x))
        loss = cde(path, path.observed).pow(2).sum()
        *found, values = torch.autograd.grad(loss, [*cde.parameters(), x])
        return [*found, values[seen]]

    expected = gradients(pynode.DirectAdjoint())
    for sensealg in SENSEALGS:
        for a, b in zip(gradients(sensealg), expected, strict=True):
            # Continuous adjoints add an error of their tolerance, 1e-9, times steps and growth.
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6 * float(b.abs().max()))


@pytest.mark.parametrize("make", EVERY)
def test_gradients_equal_finite_differences(make) -> None:
    ts, x = series(length=4, batch=2)
    cde = model(3, algorithm=pynode.RK4())

    def loss(values, weight):
        path = make(ts, values) if make is RectilinearControl else make(ts, with_time(ts, values))
        cde.field.f.net[0].weight.data.copy_(weight)
        return cde(path)

    assert torch.autograd.gradcheck(lambda v: loss(v, cde.field.f.net[0].weight), (x.requires_grad_(),))
    weight = cde.field.f.net[0].weight
    path = make(ts, x) if make is RectilinearControl else make(ts, with_time(ts, x))
    (gradient,) = torch.autograd.grad(cde(path).sum(), weight)
    direction, h = torch.randn_like(weight), 1e-5
    start = weight.detach().clone()
    with torch.no_grad():
        up, down = (loss(x, start + s * h * direction).sum() for s in (1, -1))
    assert abs((up - down) / (2 * h) - (gradient * direction).sum()) < 1e-7  # h**2 times the third derivative


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("make", EVERY)
def test_the_field_is_captured_for_julia(make, dtype) -> None:
    ts, x = series(missing=0.3)
    path = make(ts, x).to(dtype)
    cde = model(path.channels).to(dtype)
    for coefficients in (path.coefficients, path.coefficients.detach().requires_grad_()):
        text = source(cde.field, float(path.knots[1]), cde.initial(path.start), (path.knots, coefficients))
        assert "vjp_p!" in text


def test_two_rows_are_captured_too() -> None:
    ts, x = series(length=2)
    path = LinearControl(ts, x)
    cde = model(2)
    assert source(cde.field, float(ts[0]), cde.initial(path.start), (path.knots, path.coefficients))
    assert cde(path).shape == (3, 2)


def test_state_dict_round_trip_and_pickle() -> None:
    ts, x = series()
    path = LinearControl(ts, x)
    cde, other = model(2), NeuralCDE(MatrixField(4, 2, width=8), torch.nn.Linear(2, 4), torch.nn.Linear(4, 2)).double()
    file = io.BytesIO()
    torch.save(cde.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    other.rtol, other.atol = cde.rtol, cde.atol
    assert torch.equal(cde(path), other(path))
    file = io.BytesIO()
    torch.save((cde, path), file)
    file.seek(0)
    twin, twin_path = torch.load(file, weights_only=False)
    assert torch.equal(cde(path), twin(twin_path))


def test_bad_input() -> None:
    ts, x = series()
    with pytest.raises(pynode.InputError, match=r"control is a Tensor.*HermiteControl"):
        model(2)(x)
    with pytest.raises(pynode.FieldError, match=r"shape \(3, 4, 2\).*3 channels"):
        NeuralCDE(MatrixField(4, 2).double(), torch.nn.Linear(3, 4).double())(LinearControl(ts, with_time(ts, x)))
    with pytest.raises(pynode.InputError, match=r"initial is a NoneType"):
        NeuralCDE(MatrixField(4, 2), None)
    with pytest.raises(pynode.InputError, match=r"NeuralCDE got saveat="):
        NeuralCDE(MatrixField(4, 2), torch.nn.Linear(2, 4), saveat=[1.0])


class Heisenberg(torch.nn.Module):
    """``dz = A_0 z dX_0 + A_1 z dX_1`` with ``A_0 = E_01, A_1 = E_12``: brackets of three are zero."""

    def __init__(self) -> None:
        super().__init__()
        matrices = torch.zeros(2, 3, 3, dtype=torch.float64)
        matrices[0, 0, 1] = matrices[1, 1, 2] = 1
        self.matrices = torch.nn.Parameter(matrices)

    def forward(self, t, z):
        return torch.einsum("chk,...k->...hc", self.matrices, z)


def products(field, x, z0):
    """The linear equation's solution along straight pieces: a product of matrix exponentials."""
    z = z0
    for step in x.diff(dim=-2).unbind(-2):
        generator = torch.einsum("chk,bc->bhk", field.matrices.detach(), step)
        z = torch.einsum("bhk,bk->bh", torch.linalg.matrix_exp(generator), z)
    return z


def test_the_log_ode_method_is_exact_where_third_brackets_vanish() -> None:
    ts, x = series(length=11)
    field = Heisenberg()
    z0 = torch.randn(3, 3, dtype=torch.float64)
    expected = products(field, x, z0)
    for window in (10, 4, 1):
        path = LogSignatureControl(ts, x, window)
        assert len(path.knots) == 1 + math.ceil(10 / window)
        cde = NeuralCDE(LieBracketField(field), torch.nn.Identity(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(cde(path, z0=z0), expected, rtol=1e-8, atol=1e-8)
    # Without areas it is far off; with a single straight line there are none.
    flat = NeuralCDE(field, torch.nn.Identity(), rtol=1e-10, atol=1e-12)(LinearControl(ts[::10], x[:, ::10]), z0=z0)
    assert (flat - expected).abs().max() > 0.1
    assert LogSignatureControl(ts[:2], x[:, :2], 1).coefficients[..., 2:].abs().max() == 0


def test_the_areas_of_known_paths() -> None:
    ts = torch.arange(5, dtype=torch.float64)
    square = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]], dtype=torch.float64)
    assert LogSignatureControl(ts, square, 4).evaluate(4.0).tolist() == [0, 0, 1]  # once around: its area
    assert LogSignatureControl(ts, square.flip(0), 4).evaluate(4.0).tolist() == [0, 0, -1]
    assert LogSignatureControl(ts, square, 2).evaluate(torch.tensor([2.0, 4.0])).tolist() == [[1, 1, 0.5], [0, 0, 1]]
    angle = torch.linspace(0, 2 * math.pi, 2001, dtype=torch.float64)
    circle = torch.stack([angle.cos(), angle.sin(), angle], -1)
    found = LogSignatureControl(angle, circle, 2000).evaluate(angle[-1])
    # (cos, sin): the area pi. (cos, s): (int (cos - 1) ds - int s dcos) / 2 = (-2 pi - 2 pi) / 2. (sin, s): 0.
    expected = torch.tensor([1.0, 0.0, 2 * math.pi, math.pi, -2 * math.pi, 0.0], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)  # the polygon of 2000 sides


def test_brackets_are_those_of_the_jacobians_and_are_captured() -> None:
    torch.manual_seed(0)
    f = MatrixField(3, 4, width=5).double()
    z = torch.randn(2, 3, dtype=torch.float64)
    t = torch.tensor(0.0, dtype=torch.float64)
    found = LieBracketField(f)(t, z)
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda v: f(t, v), row) for row in z])  # (B, h, c, h)
    columns = f(t, z)
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    for k, (i, j) in enumerate(pairs):
        expected = (jacobian[:, :, j] @ columns[:, :, i, None] - jacobian[:, :, i] @ columns[:, :, j, None])[..., 0]
        torch.testing.assert_close(found[..., 4 + k], expected, rtol=1e-12, atol=1e-12)
    ts, x = series(missing=0.3, length=5)
    path = LogSignatureControl(ts, with_time(ts, x), 2)
    g = MatrixField(3, 3, width=5).double()
    cde = NeuralCDE(LieBracketField(g), lambda x0: x0[..., :3])
    assert source(cde.field, float(ts[0]), cde.initial(path.start), (path.knots, path.coefficients))
    gradients = []
    for sensealg in (pynode.DirectAdjoint(), pynode.CheckpointedAdjoint()):
        cde.sensealg = sensealg
        gradients.append(torch.autograd.grad(cde(path).sum(), list(g.parameters())))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    with pytest.raises(pynode.InputError, match="window = 0"):
        LogSignatureControl(ts, x, 0)
