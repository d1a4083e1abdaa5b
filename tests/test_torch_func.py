"""torch.func and forward-mode differentiation through DirectAdjoint, and what is said elsewhere."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import pynode
from pynode import (
    DP8,
    RK4,
    BacksolveAdjoint,
    CheckpointedAdjoint,
    DirectAdjoint,
    GradientError,
    ReturnCode,
    Tsit5,
    UnsupportedError,
    Vern7,
)
from pynode.native.error_norm import ErrorNorm

# DP8 has two error estimators.
ALGORITHMS = {"tsit5": Tsit5(), "vern7": Vern7(), "dp8": DP8(), "rk4": RK4(steps=4)}
each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
ROUNDING = {"rtol": 0.0, "atol": 1e-12}
TIMES = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
# The field below neither contracts nor expands by more than exp(2), and takes fewer than 30 steps at these tolerances:
# two solves whose local errors are below tolerance differ by less than 2 * 30 * exp(2) tolerances.
TOLERANCE = 1e-7
ADAPTIVE = {"rtol": TOLERANCE, "atol": TOLERANCE}
APART = 2 * 30 * math.exp(2) * TOLERANCE


def network(dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).to(dtype)


NETS = {dtype: network(dtype) for dtype in (torch.float32, torch.float64)}
NET = NETS[torch.float64]
PARAMS = {name: p.detach() for name, p in NET.named_parameters()}
STATES = torch.stack([torch.cos(torch.arange(3, dtype=torch.float64) + 2 * i) for i in range(4)])


def solved(params, y0, t=TIMES, sensealg=DirectAdjoint(), **options) -> pynode.Solution:  # noqa: B008  (immutable)
    f = lambda t, y: functional_call(NETS[y0.dtype], params, (y,)) * torch.cos(t)  # noqa: E731
    return pynode.solve(f, y0, t, sensealg=sensealg, **{**ADAPTIVE, **options})


def loss(params, y0, **options) -> Tensor:
    return solved(params, y0, **options).ys.pow(3).sum()


def reference(y0: Tensor, **options) -> tuple[dict[str, Tensor], Tensor]:
    """The gradient of ``loss`` by the tape and ``torch.autograd.grad``."""
    params = {name: p.clone().requires_grad_() for name, p in PARAMS.items()}
    start = y0.clone().requires_grad_()
    found = torch.autograd.grad(loss(params, start, **options), [*params.values(), start])
    return dict(zip(params, found[:-1], strict=True)), found[-1]


def assert_same(found, expected, atol: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


# ------------------------------------------------------------------------------------------ derivatives, as the tape's


@each_algorithm
def test_grad_vjp_jvp_and_jacobians(algorithm) -> None:
    y0, along = STATES[0], STATES[1]
    params, start = reference(y0, algorithm=algorithm)
    of = lambda y: loss(PARAMS, y, algorithm=algorithm)  # noqa: E731
    assert_same(grad(loss, argnums=(0, 1))(PARAMS, y0, algorithm=algorithm), (params, start))
    assert_same(vjp(of, y0)[1](torch.ones((), dtype=torch.float64))[0], start)
    assert_same(jvp(of, (y0,), (along,))[1], start @ along)
    states = lambda y: solved(PARAMS, y, algorithm=algorithm).ys  # noqa: E731
    assert_same(jacrev(states)(y0), jacfwd(states)(y0))
    assert_same(jacfwd(lambda p: loss(p, y0, algorithm=algorithm))(PARAMS), params)


@each_algorithm
def test_hessians(algorithm) -> None:
    y0, along = STATES[0], STATES[1]
    of = lambda y: loss(PARAMS, y, algorithm=algorithm)  # noqa: E731
    matrix = hessian(of)(y0)
    assert_same(matrix, matrix.T)
    assert_same(matrix, torch.autograd.functional.hessian(of, y0))
    assert_same(jvp(grad(of), (y0,), (along,))[1], matrix @ along)
    name = "0.bias"
    block = hessian(lambda b: loss({**PARAMS, name: b}, y0, algorithm=algorithm))(PARAMS[name])
    assert block.abs().max() > 1e-3
    assert_same(block, block.T)


@each_algorithm
def test_derivatives_by_times(algorithm) -> None:
    def of(t):
        return solved(PARAMS, STATES[0], t, algorithm=algorithm).ys.pow(3).sum()

    t = TIMES.clone().requires_grad_()
    (expected,) = torch.autograd.grad(of(t), t)
    assert expected[-1].abs() > 1e-3
    assert_same(grad(of)(TIMES), expected)
    assert_same(jacfwd(of)(TIMES), expected)
    s = torch.tensor([0.2, 0.7], dtype=torch.float64)
    save = lambda s: solved(PARAMS, STATES[0], saveat=s, algorithm=algorithm).ys.pow(3).sum()  # noqa: E731
    assert_same(grad(save)(s), jacfwd(save)(s), 1e-10)  # Vern7's dense weights of 1e3 by rounding of 1e-16


@pytest.mark.parametrize("derivative", [False, True], ids=["states", "derivative"])
def test_dense_output(derivative) -> None:
    s = torch.tensor([0.7, 0.2], dtype=torch.float64)

    def of(y0, s):
        sol = solved(PARAMS, y0)
        return (sol.derivative(s) if derivative else sol(s)).pow(3).sum()

    y0, times = STATES[0].clone().requires_grad_(), s.clone().requires_grad_()
    expected = torch.autograd.grad(of(y0, times), [y0, times])
    assert_same(grad(of, argnums=(0, 1))(STATES[0], s), tuple(expected), 1e-10)
    assert_same(jacfwd(of, argnums=(0, 1))(STATES[0], s), tuple(expected), 1e-10)


def test_args_trees_and_complex_states() -> None:
    f = lambda t, y, w: {"a": w * y["b"][0], "b": (-w * y["a"] * torch.cos(t) + 1j * y["b"][0],)}  # noqa: E731
    y0 = {"a": torch.tensor([0.5 + 0.1j], dtype=torch.complex128), "b": (torch.tensor([0.3j], dtype=torch.complex128),)}
    w = torch.tensor(0.7, dtype=torch.float64)

    def of(w):
        return pynode.solve(f, y0, TIMES, args=(w,), sensealg=DirectAdjoint(), **ADAPTIVE).ys["b"][0].abs().pow(2).sum()

    leaf = w.clone().requires_grad_()
    (expected,) = torch.autograd.grad(of(leaf), leaf)
    assert_same(grad(of)(w), expected)
    assert_same(jvp(of, (w,), (torch.ones_like(w),))[1], expected)
    assert_same(vmap(grad(of))(torch.stack([w, w]))[0], expected)


def test_float32() -> None:
    params = {name: p.float() for name, p in PARAMS.items()}
    found = vmap(grad(lambda y: loss(params, y, rtol=1e-4, atol=1e-4)))(STATES.float())
    assert found.dtype == torch.float32
    expected = vmap(grad(lambda y: loss(PARAMS, y, rtol=1e-4, atol=1e-4)))(STATES)
    assert_same(found.double(), expected, 2 * 30 * math.exp(2) * 1e-4)


def test_dual_numbers() -> None:
    y0, along = STATES[0], STATES[1]
    expected = reference(y0)[1] @ along
    with forward_ad.dual_level():
        for enabled in (True, False):  # forward mode does not heed no_grad
            with torch.set_grad_enabled(enabled):
                dual = loss(PARAMS, forward_ad.make_dual(y0, along))
                assert_same(forward_ad.unpack_dual(dual).tangent, expected)
        chosen = loss(PARAMS, forward_ad.make_dual(y0, along), sensealg=None)
        assert_same(forward_ad.unpack_dual(chosen).tangent, expected)


def test_no_grad_inside_a_transform() -> None:
    """no_grad hides a solve from grad, not from jvp: as for any torch operation."""

    def of(y0):
        with torch.no_grad():
            return loss(PARAMS, y0)

    y0, along = STATES[0], STATES[1]
    assert_same(jvp(of, (y0,), (along,))[1], reference(y0)[1] @ along)
    assert_same(grad(of)(y0), torch.zeros_like(y0))


# -------------------------------------------------------------------------------------------------------------- vmap


@each_algorithm
@pytest.mark.parametrize("enabled", [True, False], ids=["grad", "no_grad"])
def test_vmap_is_a_loop(algorithm, enabled) -> None:
    with torch.set_grad_enabled(enabled):
        found = vmap(lambda y: solved(PARAMS, y, algorithm=algorithm).ys)(STATES)
        expected = torch.stack([solved(PARAMS, y, algorithm=algorithm).ys for y in STATES])
    assert_same(found, expected, APART if algorithm.adaptive else 1e-14)


def test_vmap_over_parameters_and_nested() -> None:
    many = {name: torch.stack([p, 0.5 * p]) for name, p in PARAMS.items()}
    halves = {name: 0.5 * p for name, p in PARAMS.items()}
    options = {"algorithm": RK4(steps=4)}
    states = lambda p, y: solved(p, y, **options).ys  # noqa: E731
    found = vmap(vmap(states, in_dims=(None, 0)), in_dims=(0, None))(many, STATES)
    expected = torch.stack([torch.stack([states(p, y) for y in STATES]) for p in (PARAMS, halves)])
    assert_same(found, expected)
    found = vmap(vmap(lambda p, y: solved(p, y).ys, in_dims=(None, 0)), in_dims=(0, None))(many, STATES)
    expected = torch.stack([torch.stack([solved(p, y).ys for y in STATES]) for p in (PARAMS, halves)])
    assert_same(found, expected, APART)


@each_algorithm
def test_per_sample_gradients(algorithm) -> None:
    options = {"algorithm": algorithm}
    found = vmap(grad(lambda p, y: loss(p, y, **options)), in_dims=(None, 0))(PARAMS, STATES)
    for i, y in enumerate(STATES):
        for name, expected in reference(y, **options)[0].items():
            # A loss cubic in states below 2 weighs a state's error by 12 at each of nine entries.
            assert_same(found[name][i], expected, 12 * 9 * APART if algorithm.adaptive else 1e-12)


def test_every_sample_meets_its_tolerance() -> None:
    """One quick sample among 99 slow ones takes the steps it takes alone; by the root mean square over all samples, its
    error would pass at ten times its tolerance, with steps 10**(1/5) = 1.6 times as long."""
    rates = torch.tensor([[30.0], *[[0.1]] * 99], dtype=torch.float64)
    y0, accepted = torch.zeros(1, dtype=torch.float64), []

    def of(a):
        sol = pynode.solve(lambda t, y: a * torch.cos(a * t), y0, [0.0, 1.0], dt0=0.01)
        accepted.append(sol.stats.forward.accepted)
        return sol.ys[-1]

    together = vmap(of)(rates)
    alone = of(rates[0])
    assert accepted[0] == accepted[1] > 20
    # The error of every step is below 1e-5 (1 + |y|).
    assert abs(together[0].item() - math.sin(30.0)) < accepted[0] * 2e-5
    assert_same(together[0], alone)


def test_the_blend_of_two_estimators_is_of_each_sample() -> None:
    high = torch.tensor([[3.0], [0.0], [1.0]], dtype=torch.float64)
    low = torch.tensor([[0.0], [100.0], [10.0]], dtype=torch.float64)

    def blend(high, low):
        norm = ErrorNorm(0.0, 1.0)
        norm.start(torch.zeros_like(high))
        return torch.tensor(norm.blended(high, low, 1.0), dtype=torch.float64)

    each = [blend(h, x).item() for h, x in zip(high, low, strict=True)]
    assert each == [3.0, 0.0, pytest.approx(1.0 / math.sqrt(1.0 + 0.01 * 100.0))]
    assert vmap(blend, out_dims=None)(high, low).item() == 3.0


@pytest.mark.parametrize("norm", ["default", "own"])
def test_error_norms_of_samples(norm) -> None:
    own = {"default": None, "own": lambda x: x.abs().max()}[norm]
    errors = torch.tensor([[1.0, 2.0], [0.5, -4.0], [1e200, 0.0], [math.nan, 0.0]], dtype=torch.float64)

    def size(error):
        measure = ErrorNorm(0.0, 1.0, own)
        measure.start(torch.zeros_like(error))
        return torch.tensor(measure(error, 0.5), dtype=torch.float64)

    expected = [size(e).item() for e in errors]
    for rows in ([0, 1], [0, 1, 2]):
        assert vmap(size, out_dims=None)(errors[rows]).item() == pytest.approx(max(expected[i] for i in rows))
    assert math.isnan(vmap(size, out_dims=None)(errors).item())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_sample_that_fails_is_reported(bad) -> None:
    y0 = torch.tensor([[1.0], [bad]], dtype=torch.float64)
    seen = []

    def of(y):
        sol = pynode.solve(lambda t, y: -y, y, [0.0, 1.0], algorithm=RK4(steps=2), throw=False)
        seen.append(sol.retcode)
        return y

    vmap(of)(y0)
    assert seen == [ReturnCode.InitialFailure]


def test_stats_count_evaluations_and_pullbacks() -> None:
    kept = []

    def of(y0):
        sol = solved(PARAMS, y0, [0.0, 1.0], algorithm=RK4(steps=4))
        kept.append(sol)
        return sol.ys[-1].sum()

    vmap(of)(STATES)
    assert (kept[0].stats.forward.nfe, kept[0].stats.backward.nvjp) == (16, 0)
    vmap(grad(of))(STATES)
    assert (kept[1].stats.forward.nfe, kept[1].stats.forward.accepted, kept[1].stats.backward.nvjp) == (16, 4, 16)


# --------------------------------------------------------------------------------------------------- choices, refusals


def test_direct_adjoint_is_chosen_inside_transforms() -> None:
    names = []

    def of(y0):
        sol = solved(PARAMS, y0, sensealg=None)
        names.append(sol.sensealg)
        return sol.ys.pow(3).sum()

    assert_same(grad(of)(STATES[0]), reference(STATES[0])[1])
    vmap(of)(STATES)
    assert names == [DirectAdjoint()] * 2
    of(STATES[0].clone().requires_grad_())
    assert names[-1] == CheckpointedAdjoint()


@pytest.mark.parametrize("sensealg", [CheckpointedAdjoint(), BacksolveAdjoint()], ids=["checkpointed", "backsolve"])
@pytest.mark.parametrize("transform", [grad, vmap], ids=["grad", "vmap"])
def test_other_algorithms_are_refused_inside_transforms(transform, sensealg) -> None:
    inputs = STATES if transform is vmap else STATES[0]
    with pytest.raises(GradientError, match=r"Adjoint\(\) inside a torch.func transform.*DirectAdjoint\(\)"):
        transform(lambda y: loss(PARAMS, y, sensealg=sensealg))(inputs)


@pytest.mark.parametrize("where", ["y0", "args", "closure", "t"])
@pytest.mark.parametrize("enabled", [True, False], ids=["grad", "no_grad"])
def test_other_algorithms_refuse_dual_numbers(where, enabled) -> None:
    with forward_ad.dual_level(), torch.set_grad_enabled(enabled):
        one = torch.ones((), dtype=torch.float64)
        plain = {"y0": STATES[0], "args": one, "closure": one, "t": TIMES}
        x = {**plain, where: forward_ad.make_dual(plain[where], torch.ones_like(plain[where]))}
        f = lambda t, y, a: -y * a * x["closure"]  # noqa: E731
        with pytest.raises(GradientError, match=r"dual number.*CheckpointedAdjoint\(\).*DirectAdjoint\(\)"):
            pynode.solve(f, x["y0"], x["t"], args=(x["args"],), sensealg=CheckpointedAdjoint())


def test_other_algorithms_serve_plain_tensors_at_a_dual_level() -> None:
    y0 = STATES[0].clone().requires_grad_()
    with forward_ad.dual_level():
        found = loss(PARAMS, y0, sensealg=CheckpointedAdjoint())
        assert_same(torch.autograd.grad(found, y0)[0], reference(STATES[0])[1], 1e-9)


@pytest.mark.parametrize("sensealg", [None, DirectAdjoint()], ids=["default", "direct"])
@pytest.mark.parametrize("which", ["t", "saveat", "rtol", "atol", "tstops"])
def test_times_and_tolerances_of_samples_are_refused(which, sensealg) -> None:
    times = {"rtol": 1e-3, "atol": 1e-3}.get(which, TIMES)
    values = torch.stack([times, 0.5 * times]) if isinstance(times, Tensor) else torch.tensor([times, 0.5 * times])

    def of(value):
        return solved(PARAMS, STATES[0], sensealg=sensealg, **{which: value}).ys

    with pytest.raises(UnsupportedError, match=rf"{which} differs between the samples of a vmap.*rescaling"):
        vmap(of)(values)


def test_times_common_to_all_samples_may_be_vmapped() -> None:
    found = vmap(lambda t, y: solved(PARAMS, y, t, algorithm=RK4(steps=4)).ys)(TIMES.expand(4, -1), STATES)
    assert_same(found, vmap(lambda y: solved(PARAMS, y, algorithm=RK4(steps=4)).ys)(STATES))


@pytest.mark.parametrize("sensealg", [CheckpointedAdjoint(), BacksolveAdjoint()], ids=["checkpointed", "backsolve"])
def test_queries_of_other_solves_are_refused_inside_transforms(sensealg) -> None:
    sol = solved(PARAMS, STATES[0].clone().requires_grad_(), sensealg=sensealg, saveat=pynode.SaveAt(dense=True))
    s = torch.tensor(0.3, dtype=torch.float64)
    with pytest.raises(GradientError, match=r"sol\(t\).*transform.*DirectAdjoint"):
        jacrev(lambda s: sol(s))(s)
    with forward_ad.dual_level(), pytest.raises(GradientError, match=r"sol\(t\).*dual times.*DirectAdjoint"):
        sol(forward_ad.make_dual(s, torch.ones_like(s)))


def test_compiled_steps_are_refused_inside_transforms() -> None:
    with torch.no_grad(), pytest.raises(UnsupportedError, match="compile='step' with DirectAdjoint"):
        vmap(lambda y: pynode.solve(NET, y, TIMES, compile="step").ys)(STATES)
