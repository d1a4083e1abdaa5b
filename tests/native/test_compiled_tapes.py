"""compile="step" with reversible methods, and on torch's tape (DirectAdjoint): values and gradients of the eager solve.

Torch's graphs run here without its code generator (``aot_eager``), which takes minutes and is no part of pynode; tests
marked slow run with it.
"""

from __future__ import annotations

import functools

import pytest
import torch
import torch._functorch.config

import pynode
from pynode import AsynchronousLeapfrog, CheckpointedAdjoint, DirectAdjoint, ReversibleAdjoint, ReversibleHeun, Tsit5

F64 = torch.float64
WORKS = [
    (ReversibleHeun(steps=7), ReversibleAdjoint()),
    (ReversibleHeun(steps=7), CheckpointedAdjoint(checkpoints=3)),
    (AsynchronousLeapfrog(adaptive=True), ReversibleAdjoint()),
    (AsynchronousLeapfrog(steps=7), DirectAdjoint()),
    (Tsit5(), DirectAdjoint()),
]
each = pytest.mark.parametrize(("algorithm", "sensealg"), WORKS, ids=lambda x: x.name)
#: The first and the last stand for all of them in every run.
some = pytest.mark.parametrize(
    ("algorithm", "sensealg"),
    [pytest.param(*work, marks=[pytest.mark.slow] if 0 < i < 4 else []) for i, work in enumerate(WORKS)],
    ids=lambda x: x.name,
)
LOOSE = {"rtol": 1e-3, "atol": 1e-3}
# A few dozen steps of a dozen operations on numbers below 10, their perturbations grown by less than 10 each way. A
# step size is steady to rounding.
ROUNDING = 50 * 12 * 1.1e-16 * 10 * 100


@pytest.fixture
def quick(monkeypatch):
    """Graphs without torch's code generator."""
    real = torch.compile

    def graphs(function, dynamic, options):
        return real(function, dynamic=dynamic, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", graphs)


@pytest.fixture(params=["graphs", pytest.param("code", marks=pytest.mark.slow)])
def either(request):
    if request.param == "graphs":
        request.getfixturevalue("quick")


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = (torch.nn.Linear(*shape, dtype=F64) for shape in ((2, 5), (5, 2)))

    def forward(self, t, y):
        return self.b(torch.tanh(self.a(y))) * torch.cos(t) + (t > 0.5)


def gradients(f, t=(0.0, 0.3, 1.0), **options):
    """States and gradients, twice: the first look is autograd's, the second pass is compiled throughout."""
    t = torch.tensor(t, dtype=F64, requires_grad=options.pop("times", False))
    y0 = torch.linspace(-1, 1, 6, dtype=F64).reshape(3, 2).requires_grad_()
    leaves = [y0, *f.parameters(), *([t] if t.requires_grad else [])]
    found = []
    for _ in range(2):
        sol = pynode.solve(f, y0, t, **{**LOOSE, **options})
        loss = (sol.ys * torch.linspace(1, 2, len(t), dtype=F64)[:, None, None]).sum()
        if sol.running_cost is not None:
            loss = loss + sol.running_cost
        if options.get("saveat") is not None:
            loss = loss + sol(torch.tensor([0.11, 0.77], dtype=F64)).square().sum()
        found += [sol.ys.detach(), *torch.autograd.grad(loss, leaves)]
    return found, sol.stats


def agree(f, algorithm, sensealg, **options):
    wanted, eager = gradients(f, algorithm=algorithm, sensealg=sensealg, **options)
    found, stats = gradients(f, algorithm=algorithm, sensealg=sensealg, compile="step", **options)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=ROUNDING * max(1.0, b.abs().max().item()))
    if not isinstance(sensealg, DirectAdjoint):
        assert (stats.forward, stats.backward) == (eager.forward, eager.backward)
    return found


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@each
def test_values_gradients_and_counts_are_those_of_eager_steps(either, net, algorithm, sensealg):
    before = pynode.compile_stats().graphs
    agree(net, algorithm, sensealg)
    assert pynode.compile_stats().graphs > before


OPTIONS = {
    "jump": {"d_discontinuities": [0.5]},
    "times": {"times": True},
    "back": {"t": (1.0, 0.6, 0.0)},
    "dense": {"saveat": pynode.SaveAt(dense=True)},
    "cost": {"running_cost": lambda t, y: y.square().sum() * t},
}


@some
@pytest.mark.parametrize("case", OPTIONS)
def test_jumps_times_costs_and_dense_output(quick, net, algorithm, sensealg, case):
    options = OPTIONS[case]
    if case == "jump" and not algorithm.adaptive:
        mesh = lambda t: torch.linspace(0.0, 1.0, 9, dtype=F64)  # noqa: E731
        algorithm = type(algorithm)(mesh=mesh)
    agree(net, algorithm, sensealg, **options)


@pytest.mark.parametrize(("algorithm", "sensealg"), [WORKS[0], WORKS[4]], ids=lambda x: x.name)
def test_trees_and_arguments_against_finite_differences(quick, algorithm, sensealg):
    def solved(q, p, a):
        f = lambda t, y, a: {"q": y["p"] * a, "p": -torch.sin(y["q"])}  # noqa: E731
        sol = pynode.solve(
            f, {"q": q, "p": p}, [0.0, 0.8], args=(a,), algorithm=algorithm, sensealg=sensealg, compile="step",
            dtmin=0.2, dtmax=0.2, dt0=0.2, force_dtmin=True,
        )  # fmt: skip
        return sol.ys["q"][-1], sol.ys["p"][-1]

    leaves = [torch.tensor(x, dtype=F64, requires_grad=True) for x in ([0.5, -0.3], [0.1, 0.8], 1.3)]
    assert torch.autograd.gradcheck(solved, leaves, fast_mode=True)


@some
def test_other_times_tolerances_and_weights_do_not_compile_again(quick, net, algorithm, sensealg):
    gradients(net, algorithm=algorithm, sensealg=sensealg, compile="step")
    counters = torch._dynamo.utils.counters["stats"]
    before, graphs = counters["unique_graphs"], pynode.compile_stats().graphs
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.1)
    options = {"algorithm": algorithm, "sensealg": sensealg, "t": (0.5, 1.2, 2.0), "rtol": 1e-2}
    found, _ = gradients(net, compile="step", **options)
    assert (counters["unique_graphs"], pynode.compile_stats().graphs) == (before, graphs)
    for a, b in zip(found, gradients(net, **options)[0], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=ROUNDING * max(1.0, b.abs().max().item()))


def test_running_backward_is_still_checked(quick):
    """y' = -8 y over 10: the rounding of the tiny final state grows by exp(80) on the way back."""
    y0 = torch.ones(2, dtype=F64, requires_grad=True)
    sol = pynode.solve(
        lambda t, y: -8 * y, y0, [0.0, 10.0], algorithm=ReversibleHeun(steps=2000), sensealg=ReversibleAdjoint(),
        compile="step",
    )  # fmt: skip
    with pytest.raises(pynode.GradientError, match=r"run backward for ReversibleAdjoint.*CheckpointedAdjoint"):
        sol.ys[-1].sum().backward()


def test_a_parameter_that_is_not_used_gets_no_gradient(quick, net):
    net.unused = torch.nn.Parameter(torch.ones(1, dtype=F64))
    for algorithm, sensealg in WORKS[:1] + WORKS[4:]:
        for _ in range(2):
            net.zero_grad()
            y0 = torch.ones(3, 2, dtype=F64)
            options = {"algorithm": algorithm, "sensealg": sensealg, "compile": "step"}
            pynode.solve(net, y0, [0.0, 1.0], **options).ys[-1].sum().backward()
            assert net.unused.grad is None
            assert net.a.weight.grad is not None


@pytest.mark.slow
def test_a_tape_is_kept_where_torch_is_told_to(net):
    """Torch's compiled pullbacks write into what the tape holds, unless this option of its is off."""
    y0 = torch.ones(3, 2, dtype=F64, requires_grad=True)
    for algorithm in (Tsit5(), ReversibleHeun(steps=3)):
        with torch._functorch.config.patch(donated_buffer=False):
            sol = pynode.solve(net, y0, [0.0, 1.0], algorithm=algorithm, sensealg=DirectAdjoint(), compile="step")
            first, again = (torch.autograd.grad(sol.ys[-1].sum(), y0, retain_graph=True)[0] for _ in range(2))
        assert torch.equal(first, again)


@some
def test_whole_solves_fall_back_to_compiled_steps(quick, net, algorithm, sensealg):
    solve = functools.partial(pynode.solve, net, torch.ones(3, 2, dtype=F64, requires_grad=True), [0.0, 1.0])
    options = {**LOOSE, "algorithm": algorithm, "sensealg": sensealg}
    with pytest.warns(pynode.CompileWarning, match="It is done with compile='step'"):
        found = solve(compile="solve", **options)
    torch.testing.assert_close(found.ys, solve(**options).ys, rtol=0, atol=ROUNDING)


def test_other_reversible_methods_are_refused():
    f = lambda t, y: (y[1], -y[0])  # noqa: E731
    y0 = (torch.ones(1, dtype=F64), torch.ones(1, dtype=F64))
    with pytest.raises(pynode.UnsupportedError, match=r"VelocityVerlet.*ReversibleHeun"):
        pynode.solve(f, y0, [0.0, 1.0], algorithm=pynode.VelocityVerlet(steps=3), compile="step")
    with pytest.raises(pynode.UnsupportedError, match=r"DirectAdjoint inside a torch\.func"):
        torch.func.vmap(lambda y: pynode.solve(lambda t, y: -y, y, [0.0, 1.0], compile="step").ys)(torch.ones(2, 2))
