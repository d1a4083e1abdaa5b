"""``compile="solve"``: whole solves in C++ against the same solves in torch, number for number."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import warnings
import weakref

import pytest
import torch
from torch import nn

import pynode
from pynode import CompileWarning, InputError, SolveError
from pynode.native.tableaus import TABLEAUS

F64 = torch.float64
#: The elementary controller passes on least of how differently errors are rounded.
STEADY = {"controller": pynode.IController(), "dt0": 0.1}
TIMES = torch.tensor([0.0, 0.7, 2.0, 3.0], dtype=F64)


class Net(nn.Module):
    """Depends on time, on weights and on what it is given."""

    def __init__(self, dtype=F64, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Linear(3, 8).to(dtype), nn.Linear(8, 3).to(dtype)
        self.pace = nn.Parameter(torch.tensor(0.3, dtype=dtype))

    def forward(self, t, y, *args):
        out = self.second(torch.tanh(self.first(y) + torch.sin(self.pace * t))) - 0.2 * y
        return out * args[0] if args else out


@pytest.fixture(autouse=True)
def _no_falling_back():
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompileWarning)
        yield


def start(dtype=F64):
    return torch.randn(2, 3, dtype=dtype, generator=torch.Generator().manual_seed(1)).requires_grad_()


def solved(f, y0, compile, t=TIMES, **options):
    """The solution, and its gradients of y0, the parameters and the differentiable arguments."""
    sol = pynode.solve(f, y0, t, compile=compile, **options)
    weights = torch.linspace(0.5, 1.5, sol.ys.numel(), dtype=sol.ys.dtype).view_as(sol.ys)
    inputs = [y0, *f.parameters(), *(x for x in options.get("args", ()) if x.requires_grad)]
    return sol, torch.autograd.grad((sol.ys * weights).sum(), inputs)


def agree(f, y0, tolerance, **options):
    """Solve in torch, then twice in C++: the second time on what the first one left."""
    wanted, gradients = solved(f, y0, False, **options)
    for repeated in (False, True):
        sol, found = solved(f, y0, "solve", **options)
        torch.testing.assert_close(sol.ys, wanted.ys, rtol=tolerance, atol=tolerance)
        for a, b in zip(found, gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=10 * tolerance, atol=10 * tolerance * float(b.abs().max()))
        forward, expected = sol.stats.forward, wanted.stats.forward
        assert (forward.accepted, forward.rejected) == (expected.accepted, expected.rejected)
        # The first solve looks at f before it is a program.
        assert forward.nfe == expected.nfe + (not repeated)
    return sol, wanted


@pytest.mark.parametrize("name", TABLEAUS)
def test_every_explicit_runge_kutta_method(name):
    algorithm = pynode.algorithms.algorithm_from_name(name)
    tight = {"rtol": 1e-5, "atol": 1e-6, **STEADY} if algorithm.adaptive else {}
    agree(Net(), start(), 1e-11, algorithm=algorithm, **tight)


def test_float32():
    """Tolerances far above rounding, or rounding would choose the steps."""
    agree(Net(torch.float32), start(torch.float32), 1e-5, algorithm="dp5", rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"tstops": [0.33, 1.1]},
        {"dt0": 0.01},
        {"dtmax": 0.05},
        {"dtmin": 0.2, "force_dtmin": True, "rtol": 1e-9, "atol": 1e-10},
        {"controller": pynode.IController()},
        {"controller": pynode.PredictiveController()},
        {"controller": pynode.PIController()},
        {"controller": pynode.PIDController(dcoeff=0.1)},
        {"atol": torch.logspace(-8, -6, 6, dtype=F64), "rtol": 1e-6},
        {"atol": 0.0},
        {"saveat": torch.tensor([0.1, 0.5, 2.9], dtype=F64)},
        {"algorithm": pynode.Euler(dt=0.03)},
        {"algorithm": pynode.RK4(dt=0.4, interpolation="linear")},
        {"algorithm": pynode.Vern7(), "saveat": torch.tensor([0.1, 0.5, 2.9], dtype=F64)},
        {"t": TIMES.flip(0)},
        {"args": (torch.tensor(0.7, dtype=F64),)},
        {"args": (torch.tensor(0.7, dtype=F64, requires_grad=True),)},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_option(options):
    # What steers the steps is rounded differently; a filter of errors passes that on to the steps.
    agree(Net(), start(), 1e-9, **options)


def test_beyond_the_room_for_what_stages_leave(monkeypatch):
    """A pullback that has to repeat its steps has the same gradient."""
    from pynode.cpp import backend

    monkeypatch.setattr(backend, "BUDGET", 20_000)
    sol, _ = agree(Net(), start(), 1e-11, algorithm="rk4", t=torch.linspace(0, 3, 60, dtype=F64))
    assert sol.stats.backward.nfe > 0


def test_dense_output_resuming_and_gradients_of_times():
    f, y0 = Net(), start()
    values = []
    for compile in (False, "solve", "solve"):
        t = TIMES.clone().requires_grad_()
        sol = pynode.solve(f, y0, t, compile=compile, **STEADY)
        more = sol.resume([4.0])
        inputs = [y0, t, *f.parameters()]
        at = torch.tensor(1.234, dtype=F64, requires_grad=True)
        loss = sol(at).sum() + sol.ys[1].square().sum() + sol.derivative(0.5).sum() + more.ys[-1].sum()
        values.append([loss, *torch.autograd.grad(loss, [*inputs, at])])
    for found in values[1:]:
        torch.testing.assert_close(found, values[0], rtol=1e-10, atol=1e-10)


def test_of_a_repeated_solve_without_gradients_of_times():
    f, y0 = Net(), start()
    every = []
    for compile in (False, "solve", "solve"):
        sol = pynode.solve(f, y0, TIMES, compile=compile, **STEADY)
        loss = sol(1.234).sum() + sol.derivative(0.5).sum() + sol.resume([4.0]).ys[-1].sum()
        found = [loss, *torch.autograd.grad(loss, [y0, *f.parameters()])]
        every.append(found)
    for found in every[1:]:
        torch.testing.assert_close(found, every[0], rtol=1e-10, atol=1e-10)


def test_second_derivatives():
    f, y0 = Net(), start()
    found = []
    for compile in (False, "solve", "solve"):
        ys = pynode.solve(f, y0, TIMES, compile=compile, **STEADY).ys
        (first,) = torch.autograd.grad(ys[-1].square().sum(), y0, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [y0, *f.parameters()]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-9, atol=1e-11)


def test_trees_and_running_costs():
    def field(t, y):
        return {"q": y["p"], "p": (-torch.sin(y["q"][0]) * torch.ones(3, dtype=F64),)[0]}

    y0 = {"q": torch.full((3,), 0.7, dtype=F64, requires_grad=True), "p": torch.zeros(3, dtype=F64)}
    cost = lambda t, y: y["p"].square().sum()  # noqa: E731
    found = []
    for compile in (False, "solve"):
        sol = pynode.solve(field, y0, TIMES, compile=compile, running_cost=cost)
        loss = sol.running_cost + sol.ys["q"][1:].sum()
        found.append([loss, *torch.autograd.grad(loss, y0["q"])])
    torch.testing.assert_close(found[1], found[0], rtol=1e-11, atol=1e-12)


def test_what_compiling_did_is_counted():
    f, before = Net(), pynode.compile_stats()
    for _ in range(3):
        pynode.solve(f, start(), TIMES, compile="solve")
    after = pynode.compile_stats()
    assert (after.solves, after.repeated) == (before.solves + 1, before.repeated + 2)
    assert after.fallen_back == before.fallen_back


# What changes between solves


def test_training_sees_every_change_of_the_weights():
    losses = []
    for compile in (False, "solve"):
        f, y0 = Net(), start().detach()
        optimiser = torch.optim.Adam(f.parameters(), 0.05)
        losses.append([])
        for _ in range(6):
            optimiser.zero_grad()
            loss = pynode.solve(f, y0, TIMES, compile=compile).ys[-1].square().sum()
            loss.backward()
            optimiser.step()
            losses[-1].append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    assert losses[0][-1] < losses[0][0]


def test_a_model_that_was_changed_is_another_one():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.factor, self.fixed = (
                nn.Parameter(torch.ones((), dtype=F64)),
                1.0,
                torch.tensor(0.0, dtype=F64),
            )

        def forward(self, t, y):
            return -self.factor * self.weight * y + self.fixed

    f, y0 = Scaled(), torch.ones(1, dtype=F64)

    def ends():
        return [pynode.solve(f, y0, [0.0, 1.0], compile=c).ys[-1].item() for c in ("solve", "solve", False)]

    seen = [ends()]
    f.factor = 2.0
    seen.append(ends())
    f.fixed.fill_(0.5)  # in place: part of the program
    seen.append(ends())
    f.weight.requires_grad_(False)
    seen.append(ends())
    f.weight = nn.Parameter(torch.tensor(0.25, dtype=F64))
    seen.append(ends())
    for first, second, plain in seen:
        assert first == pytest.approx(plain, rel=1e-10)
        assert second == pytest.approx(plain, rel=1e-10)
    assert len({round(x[2], 4) for x in seen}) == 4  # switching the gradient off changes nothing


def test_weights_changed_before_the_backward_pass_raise():
    f, y0 = Net(), start()
    for _ in range(2):
        loss = pynode.solve(f, y0, TIMES, compile="solve").ys[-1].sum()
        with torch.no_grad():
            f.pace += 0.1
        with pytest.raises(pynode.GradientError, match="modified in place"):
            loss.backward()


def test_gradients_of_many_rows_are_summed_before_they_are_added():
    """dL/dw is 4 stages x 20 steps of sums over 256 rows, all of one sign: each sum is rounded 256 times at its own
    size, the total 80 times. Rows added to the total one by one would round 20480 times at its size."""

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(16, 16))

        def forward(self, t, y):
            return y @ self.w

    f, y0 = Linear(), torch.full((256, 16), 0.1, requires_grad=True)
    sol = pynode.solve(f, y0, [0.0, 1.0], algorithm=pynode.RK4(steps=20), compile="solve")
    sol.ys[-1].sum().backward()
    bound = (256 + 80) * torch.finfo(torch.float32).eps / 2
    torch.testing.assert_close(f.w.grad, torch.full((16, 16), 25.6), rtol=bound, atol=0.0)


def test_weights_in_another_order_of_memory():
    f, y0 = Net(), start()
    f.first.weight = nn.Parameter(f.first.weight.detach().t().contiguous().t())
    agree(f, y0, 1e-11, **STEADY)


def test_a_frozen_weight_and_one_that_f_does_not_use():
    f, y0 = Net(), start()
    f.unused = nn.Parameter(torch.zeros(2, dtype=F64))
    f.second.bias.requires_grad_(False)
    inputs = [f.pace, f.first.weight]
    for _ in range(2):
        sol = pynode.solve(f, y0, TIMES, compile="solve", allow_unused=True, **STEADY)
        found = torch.autograd.grad(sol.ys.sum(), inputs)
        wanted = torch.autograd.grad(pynode.solve(f, y0, TIMES, allow_unused=True, **STEADY).ys.sum(), inputs)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_fields_and_solves_are_forgotten():
    f, y0 = Net(), start()
    there = [weakref.ref(f)]
    for _ in range(2):
        sol = pynode.solve(f, y0, TIMES, compile="solve")
        sol.ys.sum().backward()
        there += [weakref.ref(sol), weakref.ref(sol.ys)]
    del f, sol
    gc.collect()
    assert [x() for x in there] == [None] * 5


def test_memory_stays_where_it_was():
    """Resident memory over repeated solves and gradients; C++ gives everything back."""
    f, y0 = Net(), start()

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def work(count):
        for _ in range(count):
            pynode.solve(f, y0, TIMES, compile="solve", algorithm="rk4").ys.sum().backward()
        return resident()

    before = work(100)
    # A leak of one solve's states and stages alone would be some 40 kB a time.
    assert work(500) - before < 5_000_000


# What goes wrong


@pytest.mark.parametrize(
    ("f", "options", "retcode"),
    [
        (lambda t, y: y * y, {"t": [0.0, 2.0]}, "DtLessThanMin"),
        (lambda t, y: -1e6 * (y - torch.cos(t)), {"max_steps": 50, "t": [0.0, 3.0]}, "MaxIters"),
        (lambda t, y: y / (y - y), {"t": [0.0, 1.0]}, "InitialFailure"),
        (lambda t, y: torch.exp(100 * y), {"t": [0.0, 1.0], "algorithm": pynode.RK4(steps=5)}, "Unstable"),
    ],
)
def test_failures_are_explained_as_without(f, options, retcode):
    for _ in range(2):
        messages = []
        for compile in (False, "solve"):
            with pytest.raises(SolveError) as error:
                pynode.solve(f, torch.ones(2, dtype=F64), compile=compile, **options)
            assert error.value.retcode.name == retcode
            messages.append(str(error.value))
        assert messages[0] == messages[1]


def test_a_failure_that_is_not_thrown_keeps_what_was_reached():
    f = lambda t, y: y * y  # noqa: E731
    for _ in range(2):
        sols = [
            pynode.solve(f, torch.ones(1, dtype=F64), [0.0, 0.5, 2.0], compile=c, throw=False) for c in (False, "solve")
        ]
        assert sols[0].retcode is sols[1].retcode
        torch.testing.assert_close(sols[1].ys, sols[0].ys)


class Branching(nn.Module):
    def forward(self, t, y):
        return -y if y.sum() > 0 else y


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"f": Branching()}, "f needs a value"),
        ({"algorithm": "Rodas5P"}, "Rodas5P is no explicit Runge-Kutta method"),
        ({"sensealg": pynode.BacksolveAdjoint()}, "BacksolveAdjoint"),
        ({"sensealg": pynode.CheckpointedAdjoint(checkpoints=3)}, "few states"),
        ({"norm": lambda y: y.abs().max()}, "norm"),
        ({"d_discontinuities": [0.5]}, "d_discontinuities"),
        ({"events": pynode.Event(lambda t, y: t - 0.5)}, "events"),
        ({"saveat": pynode.SaveAt(steps=True)}, "ends of the steps"),
    ],
    ids=lambda x: "" if isinstance(x, str) else "-".join(x),
)
def test_what_cannot_be_done_in_cpp_is_done_in_torch_with_one_warning(options, reason):
    f = options.get("f") or nn.Linear(2, 2).double()
    field = f if isinstance(f, Branching) else type("Field", (nn.Module,), {"forward": lambda s, t, y: f(y)})()
    options = {name: value for name, value in options.items() if name != "f"}
    y0 = torch.ones(2, dtype=F64, requires_grad=True)
    with pytest.warns(CompileWarning, match=reason) as caught:
        found = pynode.solve(field, y0, [0.0, 1.0], compile="solve", **options)
    assert len([x for x in caught if x.category is CompileWarning]) == 1
    wanted = pynode.solve(field, y0, [0.0, 1.0], **options)
    torch.testing.assert_close(found.ys, wanted.ys)
    torch.testing.assert_close(
        torch.autograd.grad(found.ys.sum(), y0), torch.autograd.grad(wanted.ys.sum(), y0), rtol=1e-9, atol=1e-11
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompileWarning)
        pynode.solve(field, y0, [0.0, 1.0], compile="solve", **options)


def test_a_wrong_value_is_refused():
    with pytest.raises(InputError, match="'solve'"):
        pynode.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], compile="whole")


@pytest.mark.parametrize("grad", [False, True])
def test_dense_output_of_a_field_that_was_changed_since_is_refused(grad):
    f, y0 = Net(), start().detach()
    for _ in range(3):  # the second and third are repetitions of the first
        with torch.set_grad_enabled(grad):
            sol = pynode.solve(f, y0, TIMES, compile="solve")
            with torch.no_grad():
                f.pace.mul_(0.5)
            with pytest.raises(InputError, match="modified in place"):
                sol(0.5)


def test_a_mesh_of_ones_own_is_asked_every_time():
    steps = [4]
    algorithm = pynode.RK4(mesh=lambda t: torch.linspace(0.0, 1.0, steps[0] + 1, dtype=F64))
    f, y0 = Net(), start().detach()
    for n in (4, 4, 9, 9):
        steps[0] = n
        assert pynode.solve(f, y0, [0.0, 1.0], algorithm=algorithm, compile="solve").stats.forward.accepted == n


# Threads and interrupts


def test_threads_solve_at_the_same_time():
    f, y0 = Net(), start().detach()
    wanted = pynode.solve(f, y0, TIMES, compile="solve").ys
    found = []

    def work():
        with torch.no_grad():
            found.extend(pynode.solve(f, y0, TIMES, compile="solve").ys for _ in range(50))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 150
    assert all(torch.equal(x, found[0]) for x in found)
    torch.testing.assert_close(found[0], wanted)


def test_an_interrupt_ends_a_long_solve_and_leaves_all_usable():
    f = lambda t, y: -y * torch.sin(t)  # noqa: E731
    y0 = torch.ones(10, dtype=F64)
    pynode.solve(f, y0, [0.0, 1.0], compile="solve")
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    began = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which parallel test runners ignore
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            save = pynode.SaveAt(t1=True, dense=False)
            pynode.solve(f, y0, [0.0, 1e7], compile="solve", max_steps=10**9, saveat=save)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - began < 30.0
    assert torch.isfinite(pynode.solve(f, y0, [0.0, 1.0], compile="solve").ys).all()
