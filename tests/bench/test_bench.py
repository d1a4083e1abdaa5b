"""The benchmarks measure what they say. No test here looks at a real clock."""

from __future__ import annotations

import json
import math

import pytest
import torch

import pynode
from pynode.bench import Claim, Report, Table, contestants, distance, memory, overhead, reference
from pynode.bench import overhead_tables as names
from pynode.bench import work as counting
from pynode.bench.__main__ import EXPERIMENTS, main
from pynode.bench.fields import CASES, mlp, spiral
from pynode.bench.timing import Timing, alternate
from pynode.live_bytes import LiveBytes


class Clock:
    """A clock that stands still until someone works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def worker(self, *durations: float):
        """A callable that takes each duration in turn, the last for ever."""
        left = list(durations)

        def work() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return work


def test_alternate_gives_each_contestant_one_sample_a_round_without_the_warmup():
    clock = Clock()
    timings = alternate({"a": clock.worker(9.0, 1.0, 3.0, 2.0), "b": clock.worker(4.0)}, 3, warmup=1, clock=clock)
    assert timings["a"].samples == (1.0, 3.0, 2.0)
    assert (timings["a"].median, timings["a"].minimum) == (2.0, 1.0)
    assert timings["b"].samples == (4.0,) * 3


def test_alternate_rotates_the_order_and_divides_by_the_calls():
    clock, order = Clock(), []
    work = clock.worker(0.5)
    contestants = {name: lambda name=name: (order.append(name), work()) for name in "abc"}
    timings = alternate(contestants, 3, warmup=0, calls={"b": 2}, clock=clock)
    assert "".join(order) == "abbcbbcacabb"
    assert timings["b"].samples == (0.5,) * 3


def test_ratio_is_taken_within_rounds():
    # The machine slows down tenfold half way; every round still says 2.
    slow, quick = Timing((2.0, 2.0, 20.0, 20.0)), Timing((1.0, 1.0, 10.0, 10.0))
    assert slow.over(quick) == 2.0


@pytest.mark.parametrize("make", CASES.values())
def test_cases_are_reproducible_and_their_exact_version_is_the_same_field(make):
    case, again, other = make(1), make(1), make(2)
    torch.testing.assert_close(case.y0, again.y0, rtol=0, atol=0)
    for a, b in zip(case.field.parameters(), again.field.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert not torch.equal(case.y0, other.y0)
    exact = case.exact()
    assert exact.y0.dtype is torch.float64
    difference = exact.field(exact.t[0], exact.y0) - case.field(case.t[0], case.y0)
    assert difference.abs().max() < 1e-4
    assert next(case.field.parameters()).dtype is torch.float32


def test_the_spiral_starts_on_the_spiral():
    case = spiral()
    assert case.y0.shape == (20, 2)
    # It winds inwards from (2, 0): y1**4 + y2**4 decreases.
    assert case.y0.pow(4).sum(dim=1).max() <= 2.0**4
    assert mlp().y0.shape == (256, 64)


def test_counting_sees_evaluations_and_pullbacks():
    case = spiral()
    with counting.counting(case.field) as work:
        y = case.y0.clone().requires_grad_()
        out = case.field(case.t[0], y) + case.field(case.t[1], y)
        assert (work.evaluations, work.pullbacks) == (2, 0)
        out.sum().backward()
    case.field(case.t[0], case.y0)
    assert (work.evaluations, work.pullbacks) == (2, 2)


def test_hooks_count_what_the_solver_counts():
    case = spiral()
    solver = contestants.Pynode(algorithm=pynode.DP5())
    forward, backward = counting.work_of_gradient(solver, case)
    y0 = case.y0.clone().requires_grad_()
    sol = solver.solution(case, y0)
    torch.autograd.grad(sol.ys[-1].pow(2).sum(), [y0, *case.field.parameters()])
    assert forward.evaluations == sol.stats.forward.nfe
    assert (backward.evaluations, backward.pullbacks) == (sol.stats.backward.nfe, sol.stats.backward.nvjp)
    assert solver.steps(case) == (sol.stats.forward.accepted, sol.stats.forward.rejected)


def test_reference_agrees_with_an_independent_solver_and_with_finite_differences():
    case = spiral()
    _, solution, gradient = reference.crosscheck(case, reference.reference(case))
    assert solution < 1e-11
    assert gradient < 1e-7


def test_error_is_relative_over_all_tensors():
    exact = [torch.tensor([3.0], dtype=torch.float64), torch.tensor([4.0], dtype=torch.float64)]
    assert distance.error([torch.tensor([3.0]), torch.tensor([4.5])], exact) == pytest.approx(0.1)


def test_overhead_report_on_a_tiny_run():
    pytest.importorskip("torchdiffeq")
    forward = {name: overhead.FORWARD[name] for name in (names.PEER, names.OURS)}
    gradients = {name: overhead.GRADIENT[name] for name in (names.ADJOINT, names.BACKPROP, names.DEFAULT)}
    before = [p.clone() for p in spiral(0).field.parameters()]
    draws = [spiral(0), spiral(1)]
    report = overhead.measure([draws], 2, forward, gradients)
    for p, q in zip(draws[0].field.parameters(), before, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)
    assert not hasattr(draws[0].field, "callback_accept_step")
    solved, pulled = report.tables
    assert [row[0] for row in solved.rows] == [*forward, names.BARE]
    assert [row[0] for row in pulled.rows] == list(gradients)
    assert all(len(row) == len(table.columns) for table in report.tables for row in table.rows)
    data = json.loads(json.dumps(report.data))["spiral"]
    assert data["forward"][names.PEER]["faster"] == 1.0
    assert len(data["gradient"][names.DEFAULT]["samples"]) == 2
    for values in (*data["gradient"].values(), *(data["forward"][name] for name in forward)):
        assert 0.0 < values["error"] < 1e-4
    assert data["gradient"][names.DEFAULT]["pullbacks"] == data["gradient"][names.DEFAULT]["backward"]
    assert len(report.claims) == 6


def test_live_bytes_counts_storages_once_and_forgets_the_dead():
    old = torch.zeros(1000)
    with LiveBytes() as counted:
        old.add_(1.0)  # in place on what was there
        old.view(10, 100).t()
        assert counted.live == 0
        a = torch.zeros(1000)
        assert counted.live == 4000
        b = a[::2]  # a view
        a += 1.0
        c = torch.cat([a, b])
        assert counted.live == 10_000
        del a
        assert counted.live == 10_000  # b still holds it
        del b, c
        assert counted.live == 0
    assert counted.peak == 10_000


def test_live_bytes_sees_what_autograd_keeps():
    x = torch.linspace(0.1, 1.0, 1000).requires_grad_()
    with LiveBytes() as counted:
        y = x.sin().exp()  # sin keeps x, exp keeps its result
        assert counted.live == 4000
        z = y.cos()  # cos keeps y
        del y
        assert counted.live == 8000
        (gradient,) = torch.autograd.grad(z.sum(), x)
        del z
        assert counted.live == 4000
        del gradient
        assert counted.live == 0


def test_exponent_of_known_growth():
    steps = (10, 100, 1000)
    for power in (0.5, 1.0):
        assert memory.exponent(steps, [20.0 + 3.0 * n**power for n in steps], 20.0) == pytest.approx(power)
    assert memory.exponent(steps, [20.5, 20.6, 20.5], 20.0) == 0.0


def test_memory_is_flat_linear_or_square_root():
    report = memory.measure((9, 36, 100), 500)
    assert [claim.met for claim in report.claims if not claim.met] == []
    found = report.data["sensealgs"]
    assert found["BacksolveAdjoint"]["per_step"] == 0.0
    assert found["ReversibleAdjoint"]["per_step"] == 0.0
    eight = found["CheckpointedAdjoint(checkpoints=8)"]["peaks"]
    assert eight[1] == eight[2]
    assert found["CheckpointedAdjoint"]["per_step"] == pytest.approx(1.0, abs=0.02)
    assert found["DirectAdjoint"]["per_step"] > 4.0
    bounded = found["CheckpointedAdjoint(checkpoints=sqrt N)"]
    for n, peak in zip((9, 36, 100), bounded["peaks"], strict=True):
        assert peak - bounded["base"] <= 3.0 * math.sqrt(n)


def test_table_in_characters():
    table = Table("title", ("", "ms"), [("a long name", "1.00"), ("b", "22.00")])
    assert table.plain().splitlines() == [
        "title",
        "                ms",
        "-----------  -----",
        "a long name   1.00",
        "b            22.00",
    ]


def test_report_prints_claims(capsys):
    Report([], [Claim("yes", 1.0, True), Claim("no", 0.0, False), Claim("so", 0.5, None)]).print()
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == [
        "met  yes",
        "NOT MET  no",
        "measured  so",
    ]


def test_main_writes_json_and_returns_zero(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "STEPS", (4, 16))
    file = tmp_path / "out.json"
    assert main(["memory", "--size", "50", "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    assert written["experiment"] == "memory"
    assert written["environment"]["threads"] == 1
    assert written["steps"] == [4, 16]
    assert {"text", "value", "met"} == set(written["claims"][0])
    assert "BacksolveAdjoint" in capsys.readouterr().out


def test_main_returns_one_when_a_solve_fails(monkeypatch, capsys):
    def fail(options):
        raise pynode.SolveError("it stopped", pynode.ReturnCode.MaxIters, 0.5)

    monkeypatch.setattr(overhead, "run", fail)
    assert main(["overhead"]) == 1
    assert "it stopped" in capsys.readouterr().err


def test_unknown_experiments_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["nonsense"])
    error = capsys.readouterr().err
    assert all(name in error for name in EXPERIMENTS)
