"""What must never happen with the Julia backend: silent zeros, swallowed exceptions, hangs, growing memory."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch

import pynode
from pynode.julia import runtime

pytestmark = [
    pytest.mark.julia,
    pytest.mark.skipif(not runtime.installed(), reason="juliacall is not installed"),
]

SPAN = [0.0, 1.0]


def solved(f, y0=None, **options):
    y0 = torch.tensor([1.0, 0.5], dtype=torch.float64) if y0 is None else y0
    return pynode.solve(f, y0, SPAN, rtol=1e-8, atol=1e-10, backend="julia", **options)


def same_gradients(f, tensors, **options):
    """Gradients by Julia are those by torch, and not zero."""
    y0 = torch.tensor([1.0, 0.5], dtype=torch.float64)
    ours = torch.autograd.grad(
        pynode.solve(f, y0, SPAN, rtol=1e-9, atol=1e-11).ys[-1].sum(), tensors, retain_graph=True
    )
    theirs = torch.autograd.grad(solved(f, **options).ys[-1].sum(), tensors)
    for a, b in zip(ours, theirs, strict=True):
        assert a.norm() > 0
        assert (a - b).norm() <= 1e-6 * a.norm()


def test_closures_over_tensors():
    w = torch.tensor([[0.1, 0.8], [-0.7, 0.2]], dtype=torch.float64, requires_grad=True)
    same_gradients(lambda t, y: torch.tanh(w @ y), [w])


def test_captured_tensor_with_a_history():
    seed = torch.tensor([0.3, -0.4], dtype=torch.float64, requires_grad=True)
    w = torch.outer(seed, seed.cos())
    same_gradients(lambda t, y: torch.tanh(w @ y), [seed])


@pytest.mark.parametrize("alone", [True, False])
def test_a_number_of_another_precision_beside_tensors(alone):
    k = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    w = torch.tensor([[0.1, 0.8], [-0.7, 0.2]], requires_grad=True)
    f = (lambda t, y: -k * y) if alone else (lambda t, y: -k * torch.tanh(w @ y))
    tensors = [k] if alone else [k, w]
    y0 = torch.tensor([1.0, 0.5])
    for _ in range(2):  # the second one repeats the first
        theirs = pynode.solve(f, y0, SPAN, rtol=1e-5, atol=1e-7, backend="julia")
        ours = pynode.solve(f, y0, SPAN, rtol=1e-5, atol=1e-7)
        assert (theirs.ys - ours.ys).norm() <= 1e-3 * ours.ys.norm()  # 100 tolerances
        for a, b in zip(
            torch.autograd.grad(theirs.ys[-1].sum(), tensors),
            torch.autograd.grad(ours.ys[-1].sum(), tensors),
            strict=True,
        ):
            assert a.dtype == b.dtype
            assert (a - b).norm() <= 1e-3 * b.norm()


def test_frozen_and_shared_parameters():
    a = torch.nn.Linear(2, 2).double()
    b = torch.nn.Linear(2, 2).double()
    b.weight = a.weight
    a.bias.requires_grad_(False)

    class F(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = a, b

        def forward(self, t, y):
            return torch.tanh(self.b(torch.tanh(self.a(self.a(y)))))

    f = F()
    same_gradients(f, [a.weight, b.bias])
    a.bias.requires_grad_(True)  # another signature: it must not be taken for a constant
    same_gradients(f, [a.weight, a.bias, b.bias])


def test_an_attribute_that_changes_is_seen():
    class F(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.k = 1.0
            self.x = torch.ones(2, dtype=torch.float64)

        def forward(self, t, y):
            return -self.k * self.x * y

    f = F()
    with torch.no_grad():
        first = solved(f).ys[-1]
        f.k = 2.0
        second = solved(f).ys[-1]
        f.x = 2.0 * f.x
        third = solved(f).ys[-1]
        f.x.mul_(0.5)
        fourth = solved(f).ys[-1]
    start = torch.tensor([1.0, 0.5], dtype=torch.float64)
    for k, found in ((1.0, first), (2.0, second), (4.0, third), (2.0, fourth)):
        torch.testing.assert_close(found, start * torch.exp(torch.tensor(-k, dtype=torch.float64)), rtol=1e-6, atol=0)


def test_constants_of_the_solve_count_in_its_backward_pass():
    w = torch.tensor([0.5, 1.5], dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([1.0, 0.5], dtype=torch.float64)
    f = lambda t, y, x: -w * x * y  # noqa: E731
    xs = [torch.full((2,), value, dtype=torch.float64) for value in (1.0, 3.0)]
    both = [solved(f, args=(x,)).ys[-1].sum() for x in xs]
    for x, loss in zip(xs, both, strict=True):
        (found,) = torch.autograd.grad(loss, w)
        torch.testing.assert_close(found, -x * y0 * torch.exp(-w.detach() * x), rtol=1e-6, atol=0)


def test_two_models_in_turns():
    nets = [torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double() for _ in "ab"]
    fields = [lambda t, y, net=net: net(y) for net in nets]
    losses = [solved(f).ys[-1].sum() for f in fields]
    for net, f, loss in reversed(list(zip(nets, fields, losses, strict=True))):
        y0 = torch.tensor([1.0, 0.5], dtype=torch.float64)
        expected = torch.autograd.grad(
            pynode.solve(f, y0, SPAN, rtol=1e-9, atol=1e-11).ys[-1].sum(), list(net.parameters())
        )
        for a, b in zip(expected, torch.autograd.grad(loss, list(net.parameters())), strict=True):
            assert (a - b).norm() <= 1e-6 * a.norm()


def test_a_solve_inside_backward():
    class Inner(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return g * solved(lambda t, y: -y, y0=x.detach()).ys[-1]

    x = torch.ones(2, dtype=torch.float64, requires_grad=True)
    loss = solved(lambda t, y: -y, y0=Inner.apply(x)).ys[-1].sum()
    (found,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(found, torch.full_like(found, torch.e**-2), rtol=1e-6, atol=0)


def test_a_solve_inside_a_called_back_field():
    def f(t, y):
        if float(y.sum()) > -1e9:  # data: cannot be captured
            y = y + 0.0
        return -pynode.solve(lambda s, z: z, y, [0.0, 1.0], rtol=1e-8, atol=1e-10, backend="julia").ys[-1] / torch.e

    with torch.no_grad(), pytest.warns(UserWarning, match="calls torch back"):
        found = solved(f).ys[-1]
    torch.testing.assert_close(found, torch.tensor([1.0, 0.5], dtype=torch.float64) / torch.e, rtol=1e-5, atol=0)


def test_an_exception_in_f_comes_out_unchanged():
    class Mine(RuntimeError):
        pass

    def f(t, y):
        if float(t) > 0.4:
            raise Mine("at t > 0.4")
        return -y

    with pytest.warns(UserWarning, match="calls torch back"), pytest.raises(Mine, match=r"at t > 0\.4") as caught:
        solved(f)
    assert any(entry.name == "f" for entry in caught.traceback)
    torch.testing.assert_close(solved(lambda t, y: -y).ys[-1][0].item(), torch.e**-1, rtol=1e-6, atol=0)


def test_an_exception_in_the_backward_pass_comes_out_unchanged():
    class Bad(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            raise ValueError("no derivative here")

    w = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)

    def f(t, y):
        return -w * (Bad.apply(y) if float(t) < 0.5 else y)

    with pytest.warns(UserWarning, match="calls torch back"):
        sol = solved(f)
    with pytest.raises(ValueError, match="no derivative here"):
        sol.ys[-1].sum().backward()


def test_reverse_solves_that_fail_raise():
    w = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    sol = solved(lambda t, y: -w * y, sensealg=pynode.GaussAdjoint(max_steps=3, rtol=1e-13, atol=1e-13))
    with pytest.raises(pynode.SolveError, match="reverse solve of GaussAdjoint"):
        sol.ys[-1].sum().backward()


@pytest.mark.parametrize("sensealg", [pynode.GaussAdjoint(), pynode.QuadratureAdjoint(), pynode.InterpolatingAdjoint()])
def test_products_that_are_not_finite_raise(sensealg):
    w = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([0.0, 0.0], dtype=torch.float64)
    sol = solved(lambda t, y: w * torch.sqrt(y.square().sum()) + 0.0 * y, y0=y0, sensealg=sensealg)
    with pytest.raises((pynode.GradientError, pynode.SolveError)):
        sol.ys[-1].sum().backward()


def test_failures_of_the_forward_solve_say_what_and_where():
    with pytest.raises(pynode.SolveError) as caught:
        pynode.solve(lambda t, y: y**2, torch.ones(1, dtype=torch.float64), [0.0, 2.0], backend="julia")
    assert 0.9 < caught.value.t <= 1.01
    with pytest.raises(pynode.SolveError, match="limit of steps"):
        solved(lambda t, y: -y, max_steps=2)
    with pytest.raises(pynode.SolveError, match="initial time"):
        solved(lambda t, y: torch.log(y - 2.0))
    sol = pynode.solve(
        lambda t, y: y**2, torch.ones(1, dtype=torch.float64), [0.0, 0.5, 2.0], backend="julia", throw=False
    )
    assert not sol.retcode.successful
    torch.testing.assert_close(sol.ys[:, 0], torch.tensor([1.0, 2.0], dtype=torch.float64), rtol=1e-4, atol=0)


def test_backsolve_refuses_what_it_cannot_reconstruct():
    w = torch.tensor(40.0, dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([1.0, 2.0], dtype=torch.float64)
    sol = pynode.solve(
        lambda t, y: -w * (y - torch.cos(t)),
        y0,
        SPAN,
        rtol=1e-6,
        atol=1e-8,
        backend="julia",
        sensealg=pynode.BacksolveAdjoint(),
    )
    with pytest.raises((pynode.GradientError, pynode.SolveError)):
        sol.ys[-1].sum().backward()


def test_unknown_names_and_options_are_explained():
    with pytest.raises(pynode.UnsupportedError, match="Rodas99"):
        solved(lambda t, y: -y, algorithm="Rodas99")
    with pytest.raises(pynode.UnsupportedError, match="CheckpointedAdjoint"):
        solved(lambda t, y: -y, sensealg=pynode.CheckpointedAdjoint())
    with pytest.raises(pynode.UnsupportedError, match="observer"):
        solved(lambda t, y: -y, observer=object())


def test_from_another_thread_while_this_one_waits():
    """As torch's backward threads on CUDA: gradients whose garbage Julia has to collect, this thread waiting."""
    w = torch.tensor([0.5, 1.5], dtype=torch.float64, requires_grad=True)
    f = lambda t, y: -w * torch.tanh(y)  # noqa: E731
    solved(f).ys[-1].sum().backward()
    errors: list[BaseException] = []

    def work():
        try:
            for _ in range(400):
                solved(f).ys[-1].sum().backward()
            runtime.julia().main.seval("GC.gc()")
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout=120)
    assert not thread.is_alive(), "deadlock"
    assert not errors
    runtime.julia().main.seval("GC.gc()")


def test_memory_is_flat_over_a_thousand_solves():
    w = torch.tensor([0.5, 1.5], dtype=torch.float64, requires_grad=True)
    f = lambda t, y: -w * torch.tanh(y)  # noqa: E731

    def run(count):
        for _ in range(count):
            solved(f).ys[-1].sum().backward()
        runtime.julia().main.seval("GC.gc()")
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, len(runtime.julia().main.PyNode.HELD)

    run(300)
    before, held = run(100)
    after, held_after = run(1000)
    assert held_after <= held + 2
    assert after - before < 20 * 1024  # KiB: a leak of one state and its stages per solve would be more


CHILD = """
import signal, time, warnings
# A process that a shell started in the background ignores the signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
import torch, pynode
warnings.simplefilter("ignore")
captured = {captured}
def f(t, y):
    if not captured and float(t) > 1e300: return y
    return 1e4 * torch.sin(1e4 * t) * torch.ones_like(y)
y0 = torch.ones(3, dtype=torch.float64)
pynode.solve(f, y0, [0.0, 1e-3], backend="julia")
print("ready", flush=True)
start = time.time()
try:
    pynode.solve(f, y0, [0.0, 1e6], rtol=1e-10, atol=1e-12, backend="julia", max_steps=10**9)
except KeyboardInterrupt:
    print("interrupted", time.time(), flush=True)
sol = pynode.solve(f, y0, [0.0, 1e-3], backend="julia")
print("alive", sol.retcode.name, flush=True)
"""


@pytest.mark.parametrize("captured", [True, False], ids=["captured", "callback"])
def test_ctrl_c_stops_a_long_solve(captured):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(captured=captured)], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    assert child.stdout is not None
    line = ""
    while "ready" not in line:
        line = child.stdout.readline()
        assert line, "the child ended"
    time.sleep(1.0)
    sent = time.time()
    child.send_signal(signal.SIGINT)
    try:
        rest, _ = child.communicate(timeout=120)
    finally:
        child.kill()
    assert "interrupted" in rest
    assert "alive Success" in rest
    assert float(rest.split()[rest.split().index("interrupted") + 1]) - sent < 2.0


@pytest.mark.parametrize("order", ["import torch, juliacall", "import juliacall, torch"])
def test_both_import_orders(order):
    code = f"""
    {order}
    import pynode
    sol = pynode.solve(lambda t, y: -y, torch.ones(2, requires_grad=True), [0.0, 1.0], backend="julia")
    sol.ys[-1].sum().backward()
    print("fine", round(float(sol.ys[-1][0]), 4))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=600)
    assert "fine 0.3679" in done.stdout, done.stderr[-2000:]


def test_a_forked_process_is_told_to_spawn():
    solved(lambda t, y: -y)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            solved(lambda t, y: -y)
            message = "no error"
        except BaseException as error:
            message = str(error)
        os.write(writer, message.encode())
        os._exit(0)
    os.close(writer)
    message = os.read(reader, 10_000).decode()
    os.waitpid(child, 0)
    assert "spawn" in message


def test_settings_that_change_and_objects_of_julia_do_not_pile_up():
    engine = runtime.julia()
    held = engine.main.PyNode.HELD
    tsit5 = engine.main.seval("import OrdinaryDiffEqTsit5; OrdinaryDiffEqTsit5.Tsit5()")
    before = len(held)
    for k in range(runtime.SETTINGS + 50):
        with torch.no_grad():
            algorithm = pynode.JuliaAlgorithm(object=tsit5)
            controller = pynode.PIDController(pcoeff=0.3, icoeff=0.4, safety=0.8 + 1e-4 * k)
            sol = solved(lambda t, y: -y, algorithm=algorithm, controller=controller)
            assert abs(sol.ys[-1, 0].item() - 0.36787944117144233) < 1e-6
    # And the field, the last solution, and the setting and solution that go with the next call.
    assert len(held) - before <= runtime.SETTINGS + 4
