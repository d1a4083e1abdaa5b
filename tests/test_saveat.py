"""``SaveAt``'s ends and function, ``Solution.resume`` and ``progress=``."""

from __future__ import annotations

import sys

import pytest
import torch

import pynode
from pynode import Event, ReturnCode, SaveAt
from pynode.progress import Line, Reporter

T = torch.float64


def decay(t, y, rate):
    return -rate * y


def leaf(value) -> torch.Tensor:
    return torch.tensor(value, dtype=T, requires_grad=True)


def solved(y0, t, rate, **options):
    return pynode.solve(decay, y0, t, args=(rate,), rtol=1e-10, atol=1e-12, **options)


SAVES = {
    "start and end": (SaveAt(t0=True, t1=True), [0.0, 2.0]),
    "end": (SaveAt(t1=True), [2.0]),
    "start": (SaveAt(t0=True), [0.0]),
    "beside others": (SaveAt(ts=[0.5, 1.5], t0=True, t1=True), [0.0, 0.5, 1.5, 2.0]),
    "there already": (SaveAt(ts=[0.0, 1.5, 2.0], t0=True, t1=True), [0.0, 1.5, 2.0]),
}


@pytest.mark.parametrize("name", SAVES)
def test_the_ends_of_the_span(name):
    save, expected = SAVES[name]
    y0, t, rate = leaf([1.0, 2.0]), leaf([0.0, 1.0, 2.0]), leaf(0.7)
    sol = solved(y0, t, rate, saveat=save)
    assert sol.ts.tolist() == expected
    at = torch.tensor(expected, dtype=T)
    torch.testing.assert_close(sol.ys, torch.exp(-0.7 * at)[:, None] * y0, rtol=1e-8, atol=0.0)
    if save.t1 and name != "there already":  # where it is a number, given apart from t
        # dy(t1)/dt1 = f there, whichever way t1 is saved.
        (found,) = torch.autograd.grad(sol.ys[-1, 0], t)
        end = -0.7 * torch.exp(torch.tensor(-1.4, dtype=T)).item()
        assert found.tolist() == pytest.approx([-end, 0.0, end], rel=1e-6)


def test_a_function_of_the_state_is_saved_instead_of_it():
    y0, t, rate = leaf([1.0, 2.0]), leaf([0.0, 1.0, 2.0]), leaf(0.7)
    save = SaveAt(fn=lambda t, y, rate: {"sum": y.sum() * rate, "when": t.square()})
    sol = solved(y0, t, rate, saveat=save)
    bare = solved(y0, t, rate)
    assert sol.ys["sum"].shape == (3,)
    torch.testing.assert_close(sol.ys["when"], t.square())
    found = torch.autograd.grad(sol.ys["sum"].sum() + sol.ys["when"].sum(), [y0, t, rate])
    expected = torch.autograd.grad((bare.ys.sum(1) * rate).sum() + t.square().sum(), [y0, t, rate])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(sol(1.0), bare(1.0))


def test_a_function_of_the_state_after_events():
    save = SaveAt(fn=lambda t, y: y[0] ** 2)
    jump = Event(lambda t, y: t - 0.5, terminal=False, effect=lambda t, y: y + 1.0)
    sol = pynode.solve(
        lambda t, y: torch.ones_like(y), torch.zeros(1, dtype=T), [0.0, 0.25, 1.0], events=jump, saveat=save
    )
    assert sol.ys.tolist() == pytest.approx([0.0, 0.0625, 4.0], abs=1e-13)


BAD = [
    (lambda t, y: None, pynode.FieldError, "return what to save"),
    (lambda t, y: 1.0, pynode.FieldError, "a float"),
    (lambda t, y: y[: 1 + int(t > 0.5)], pynode.FieldError, "other shapes"),
    (3, pynode.InputError, "callable"),
]


@pytest.mark.parametrize(("fn", "error", "message"), BAD)
def test_functions_that_cannot_be_saved(fn, error, message):
    with pytest.raises(error, match=message):
        pynode.solve(lambda t, y: y, torch.ones(2, dtype=T), [0.0, 1.0], saveat=SaveAt(fn=fn))


# ------------------------------------------------------------------------------------------------------------ resume


@pytest.mark.parametrize("sensealg", [None, pynode.DirectAdjoint(), pynode.GaussAdjoint()], ids=str)
def test_a_resumed_solve_is_differentiable_through_both(sensealg):
    y0, t, more, rate = leaf([1.0]), leaf([0.0, 1.0]), leaf([1.5, 3.0]), leaf(0.7)
    first = solved(y0, t, rate, sensealg=sensealg)
    second = first.resume(more)
    assert second.ts.tolist() == [1.0, 1.5, 3.0]
    assert second.span == (1.0, 3.0)
    torch.testing.assert_close(second.ys[0], first.ys[-1])
    torch.testing.assert_close(second.ys[:, 0], torch.exp(-0.7 * second.ts), rtol=1e-8, atol=0.0)
    found = torch.autograd.grad(second.ys[-1, 0], [y0, t, more, rate])
    end = torch.exp(torch.tensor(-2.1, dtype=T)).item()
    # The join moves nothing.
    expected = [end], [0.7 * end, 0.0], [0.0, -0.7 * end], -3.0 * end
    for gradient, value in zip(found, expected, strict=True):
        assert gradient.tolist() == pytest.approx(value, rel=1e-6, abs=1e-8)
    third = second.resume(4.0)
    assert third.ys[-1].item() == pytest.approx(torch.exp(torch.tensor(-2.8)).item(), rel=1e-6)


def test_a_resumed_solve_starts_with_the_step_that_would_have_been_next():
    sol = solved(leaf([1.0]), [0.0, 1.0], leaf(0.7), saveat=SaveAt(steps=True))
    more = sol.resume(10.0)
    whole = solved(leaf([1.0]), [0.0, 10.0], leaf(0.7), saveat=SaveAt(steps=True))
    cold = solved(leaf([1.0]), [1.0, 10.0], leaf(0.7), saveat=SaveAt(steps=True))
    assert more.at_steps
    assert (more.ts[1] - more.ts[0]).item() > 2 * (cold.ts[1] - cold.ts[0]).item()
    assert more.stats.forward.nfe < cold.stats.forward.nfe
    assert whole.ys[-1].item() == pytest.approx(more.ys[-1].item(), rel=1e-8)


def test_resuming_behind_a_terminal_event_and_the_limit_of_steps():
    f = lambda t, y: torch.stack([y[1], torch.full_like(y[1], -2.0)])  # noqa: E731
    y0 = leaf([1.0, 0.0])
    stop = Event(lambda t, y: y[0], effect=lambda t, y: torch.stack([y[0], -y[1]]))
    first = pynode.solve(f, y0, [0.0, 5.0], events=stop)
    second = first.resume(10.0)
    assert second.retcode is ReturnCode.Terminated
    assert second.events[0].t.item() == pytest.approx(3.0, abs=1e-12)
    # t = sqrt(y0) (1 + 2), whose derivative is 3 / 2.
    assert torch.autograd.grad(second.events[0].t, y0)[0][0].item() == pytest.approx(1.5, abs=1e-9)
    short = pynode.solve(f, y0, [0.0, 100.0], dtmax=0.1, max_steps=10, throw=False)
    assert short.retcode is ReturnCode.MaxIters
    assert short.resume(short.span[1] + 0.5).retcode is ReturnCode.Success


def test_resuming_without_the_end_among_the_save_times_and_backward():
    y0, rate = leaf([1.0]), leaf(0.7)
    sol = solved(y0, [0.0, -1.0], rate, saveat=[-0.5], sensealg=pynode.BacksolveAdjoint())
    more = sol.resume([-1.5, -2.0])
    assert more.ts.tolist() == [-1.0, -1.5, -2.0]
    assert more.ys[-1].item() == pytest.approx(torch.exp(torch.tensor(1.4)).item(), rel=1e-6)
    (found,) = torch.autograd.grad(more.ys[-1].sum(), y0)
    assert found.item() == pytest.approx(torch.exp(torch.tensor(1.4)).item(), rel=1e-6)


def test_where_no_solve_goes_on():
    sol = solved(leaf([1.0]), [0.0, 1.0], leaf(0.7))
    for more in (0.5, 1.0, [2.0, 1.5], [0.5, 2.0]):
        with pytest.raises(pynode.InputError):
            sol.resume(more)
    failed = pynode.solve(lambda t, y: y**2, leaf([1.0]), [0.0, 2.0], throw=False)
    with pytest.raises(pynode.InputError, match=r"resume\(\) on a solve that ended with"):
        failed.resume(3.0)


# ---------------------------------------------------------------------------------------------------------- progress


class Shown:
    def __init__(self) -> None:
        self.fractions: list[float] = []
        self.closed = ""

    def update(self, fraction: float, text: str) -> None:
        self.fractions.append(fraction)

    def close(self, text: str) -> None:
        self.closed = text


def test_progress_is_throttled_and_passes_on_what_it_sees(monkeypatch):
    clock = iter(x * 0.0625 for x in range(10_000))
    monkeypatch.setattr("pynode.progress.time.monotonic", lambda: next(clock))
    display, inner = Shown(), Shown()
    inner.step = lambda t, y, h: inner.fractions.append(t)
    inner.accepted = inner.rejected = lambda t, y, h: None
    reporter = Reporter(0.0, 1.0, inner, display)
    pynode.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], algorithm=pynode.RK4(dt=0.01), observer=reporter)
    reporter.finish("Success", 1.0)
    # 100 steps of 1/16 s by that clock, shown when 0.2 s have passed.
    assert len(display.fractions) == 25
    assert display.fractions == sorted(display.fractions)
    assert len(inner.fractions) == 100
    assert display.closed == "Success: t = 1 of 1, 100 steps, 0 of them rejected"


@pytest.mark.parametrize("rich", [False, True])
def test_progress_is_shown_on_stderr_alone(capfd, monkeypatch, rich):
    if rich:
        pytest.importorskip("rich")
    else:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    jump = Event(lambda t, y: t - 0.5, terminal=False)
    y0 = leaf([1.0])
    sol = pynode.solve(lambda t, y: -y, y0, [0.0, 1.0], events=jump, progress=True)
    sol.ys[-1].sum().backward()
    out, err = capfd.readouterr()
    assert out == ""
    assert "t = 1 of 1" in err
    assert len(sol.events) == 1
    assert y0.grad.item() == pytest.approx(torch.exp(torch.tensor(-1.0)).item(), rel=1e-5)
    pynode.solve(lambda t, y: -y, y0, [0.0, 1.0])
    assert capfd.readouterr() == ("", "")
    with pytest.raises(pynode.SolveError):
        pynode.solve(lambda t, y: y**2, leaf([1.0]), [0.0, 2.0], progress=True)
    assert "failed" in capfd.readouterr().err


def test_a_line_is_written_over_itself_on_a_terminal(monkeypatch):
    class Terminal:
        text = ""

        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> None:
            self.text += text

        def flush(self) -> None:
            return

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    line = Line()
    line.update(0.5, "a long text")
    line.close("short")
    assert terminal.text == "\r 50% a long text\rshort           \n"
