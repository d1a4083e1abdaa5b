"""Gradients through implicit steps: the implicit function theorem against finite differences and against the tape."""

from __future__ import annotations

import pytest
import torch

import pynode
from pynode import CheckpointedAdjoint, DirectAdjoint, GaussAdjoint, QuadratureAdjoint

F64 = torch.float64
NAMES = ["ImplicitEuler", "ImplicitMidpoint", "Trapezoid", "TRBDF2", "KenCarp4", "Kvaerno5", "RadauIIA5", "RadauIIA9"]
ADAPTIVE = ["ImplicitEuler", "Trapezoid", "TRBDF2", "KenCarp4", "Kvaerno5", "RadauIIA5", "RadauIIA9"]
every_method = pytest.mark.parametrize("name", NAMES)


def inputs():
    w = torch.tensor([[-4.0, 8.0], [-2.0, -12.0]], dtype=F64)
    return [
        x.requires_grad_() for x in (w, torch.tensor([1.0, 0.3], dtype=F64), torch.tensor([0.0, 0.45, 1.0], dtype=F64))
    ]


def loss(algorithm, values, sensealg=None, **options):
    """Of states at the entries of ``t``, and inside steps, where the dense output counts."""
    w, y0, t = values
    f = lambda t, y, w: w @ torch.sin(y) + torch.cos(3.0 * t)  # noqa: E731
    sol = pynode.solve(f, y0, t, args=(w,), algorithm=algorithm, sensealg=sensealg, **options)
    weights = torch.arange(1.0, 7.0, dtype=F64).view(3, 2)
    inside = sol(0.17)
    return (sol.ys * weights).sum() + (3.0 * inside).sum(), sol


def gradients(algorithm, sensealg, **options):
    values = inputs()
    total, sol = loss(algorithm, values, sensealg, **options)
    return torch.cat([x.reshape(-1) for x in torch.autograd.grad(total, values)]), sol


@every_method
def test_gradients_of_states_parameters_and_times(name):
    """Central differences with h = 1e-5: h^2 of a third derivative of at most 1e3, and 1e-11 of the stages over h."""
    algorithm = getattr(pynode, name)(steps=5)
    found, _ = gradients(algorithm, CheckpointedAdjoint())
    expected, h = [], 1e-5
    for k, x in enumerate(inputs()):
        for i in range(x.numel()):
            ends = []
            for step in (h, -h):
                values = [x.detach().clone() for x in inputs()]
                values[k].view(-1)[i] += step
                with torch.no_grad():
                    ends.append(loss(algorithm, values)[0].item())
            expected.append((ends[0] - ends[1]) / (2 * h))
    expected = torch.tensor(expected, dtype=F64)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("name", "linsolve"), [*((name, "dense") for name in ADAPTIVE), ("TRBDF2", "gmres"), ("RadauIIA5", "gmres")]
)
def test_the_tape_and_the_replay_agree(name, linsolve):
    """The stages that were found are taken again: the same numbers but for the order of sums. Where steps are repeated
    from their states alone (the first one), to what Newton's iteration leaves."""
    algorithm = getattr(pynode, name)(linsolve=linsolve)
    options = {"rtol": 1e-2, "atol": 1e-3}
    a, sol = gradients(algorithm, CheckpointedAdjoint(), **options)
    b, direct = gradients(algorithm, DirectAdjoint(), **options)
    taken = [(x.stats.forward.accepted, x.stats.forward.rejected) for x in (sol, direct)]
    assert taken[0] == taken[1]
    assert sol.stats.forward.njac < sol.stats.forward.accepted
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6 * b.abs().max().item())
    # One correction for every stage: as many evaluations as pullbacks, and a Jacobian each.
    backward = sol.stats.backward
    assert backward.nvjp > 0
    assert backward.njac > 0
    if linsolve == "dense":
        assert backward.njac >= backward.nlu > 0


@pytest.mark.parametrize("name", ["TRBDF2", "RadauIIA5"])
def test_bounded_memory_repeats_steps_exactly(name):
    """Every step makes its own Jacobian then, and repeats bit for bit; the meshes differ from those without a bound."""
    a, sol = gradients(getattr(pynode, name)(), CheckpointedAdjoint(checkpoints=3), rtol=1e-3, atol=1e-5)
    reference, _ = gradients("RadauIIA5", CheckpointedAdjoint(), rtol=1e-7, atol=1e-9)
    assert sol.stats.forward.njac >= sol.stats.forward.accepted
    assert sol.stats.backward.accepted > sol.stats.forward.accepted  # those up to the dense query twice
    torch.testing.assert_close(a, reference, rtol=0, atol=5e-2 * reference.abs().max().item())


@pytest.mark.parametrize(
    ("name", "sensealg"),
    [
        ("KenCarp4", GaussAdjoint()),
        ("RadauIIA5", GaussAdjoint()),
        ("Kvaerno5", QuadratureAdjoint()),
        ("RadauIIA5", GaussAdjoint(checkpointing=True)),
    ],
)
def test_continuous_adjoints_go_back_implicitly(name, sensealg):
    """On a stiff problem, in a number of steps like the forward solve's."""
    k = torch.tensor(1.0, dtype=F64, requires_grad=True)
    y0 = torch.tensor([1.0], dtype=F64, requires_grad=True)
    f = lambda t, y, k: -1e4 * k * (y - torch.cos(t)) * (1.0 + y**2)  # noqa: E731
    sol = pynode.solve(
        f, y0, [0.0, 1.0], args=(k,), algorithm=name, sensealg=sensealg, rtol=1e-6, atol=1e-8, max_steps=3000
    )
    (found,) = torch.autograd.grad(sol.ys[-1].sum(), [k])
    # y = cos t + sin t / (1e4 k (1 + cos^2 t)) + O(1e-8).
    expected = -torch.sin(torch.tensor(1.0)) / (1e4 * (1.0 + torch.cos(torch.tensor(1.0)) ** 2))
    assert abs(found.item() / expected.item() - 1.0) < 2e-2
    assert sol.stats.backward.njac > 0
    assert sol.stats.backward.accepted < 3000


@pytest.mark.parametrize(
    ("sensealg", "message"),
    [
        (pynode.ForwardSensitivity(), "second derivatives of f"),
        (pynode.InterpolatingAdjoint(), r"InterpolatingAdjoint\(algorithm=Tsit5\(\)\)"),
        (pynode.BacksolveAdjoint(), r"GaussAdjoint\(\) and QuadratureAdjoint\(\) go back"),
        (pynode.ReversibleAdjoint(), "cannot be run backward"),
    ],
)
def test_what_is_refused(sensealg, message):
    with pytest.raises(pynode.UnsupportedError, match=message):
        gradients("KenCarp4", sensealg)


def test_another_algorithm_goes_back():
    a, _ = gradients("KenCarp4", pynode.InterpolatingAdjoint(algorithm=pynode.Tsit5()), rtol=1e-7, atol=1e-9)
    b, _ = gradients("KenCarp4", CheckpointedAdjoint(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sensealg", [DirectAdjoint(), CheckpointedAdjoint()])
def test_second_derivatives_are_refused_not_wrong(sensealg):
    values = inputs()
    total, _ = loss(pynode.TRBDF2(steps=3), values, sensealg)
    with pytest.raises(pynode.GradientError):
        (first,) = torch.autograd.grad(total, values[1], create_graph=True)
        torch.autograd.grad(first.sum(), values[1])


@pytest.mark.parametrize("algorithm", [pynode.TRBDF2(steps=4), pynode.KenCarp4(), pynode.RadauIIA5()])
def test_a_field_that_changes_is_found_out(algorithm):
    changed = []
    y0 = torch.ones(1, dtype=F64, requires_grad=True)
    f = lambda t, y: -y * (1.0 + 0.1 * len(changed))  # noqa: E731
    sol = pynode.solve(f, y0, [0.0, 9.0], algorithm=algorithm)
    changed.append(1)
    with pytest.raises(pynode.GradientError, match="f gave other values"):
        sol.ys[-1].sum().backward()


def test_transforms_are_refused():
    with pytest.raises(pynode.UnsupportedError, match=r"inside a torch\.func transform"):
        torch.func.vmap(lambda y: pynode.solve(lambda t, y: -y, y, [0.0, 1.0], algorithm="TRBDF2").ys[-1])(
            torch.ones(3, 2)
        )


def test_what_is_kept_of_a_step_fits_into_the_memory():
    y0 = torch.ones(100, dtype=F64, requires_grad=True)
    with pytest.raises(pynode.InputError, match=r"Radau.*takes 5600 bytes"):  # the state and six stages
        pynode.solve(
            lambda t, y: -y, y0, [0.0, 1.0], algorithm="RadauIIA5", sensealg=CheckpointedAdjoint(max_memory=10_000)
        )


def test_jumps_and_trees():
    """Nothing is carried over a jump; complex numbers are pairs of real ones."""
    y0 = (torch.tensor([1.0 + 0.5j], dtype=torch.complex128, requires_grad=True), torch.ones(2, dtype=F64))

    def f(t, y):
        rate = -1.0 if t < 0.5 else -3.0
        return rate * (1.0 + 2.0j) * y[0], rate * y[1] * y[0].abs()

    grads = []
    for algorithm in ("TRBDF2", "RadauIIA5", "Vern7"):
        sol = pynode.solve(f, y0, [0.0, 1.0], algorithm=algorithm, d_discontinuities=[0.5], rtol=1e-5, atol=1e-7)
        total = sol.ys[0][-1].abs().sum() + sol.ys[1][-1].sum()
        grads.append(torch.view_as_real(torch.autograd.grad(total, y0[0])[0]))
    for found in grads[:2]:
        torch.testing.assert_close(found, grads[2], rtol=1e-3, atol=1e-3)
