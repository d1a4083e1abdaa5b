"""Independent stepping: every row as if it were solved alone."""

from __future__ import annotations

import resource

import pytest
import torch

import pynode
from pynode import PerSample, ReturnCode
from pynode.algorithms import ALGORITHMS
from pynode.native.tableaus import TABLEAUS

F64 = torch.float64
ADAPTIVE = [name for name, tableau in TABLEAUS.items() if tableau.b_error is not None and name in ALGORITHMS]
#: One with first-same-as-last stages, one without, one with extra stages for dense output, one with two estimators.
KINDS = ("Tsit5", "Fehlberg2", "Vern7", "DP8")
every_kind = pytest.mark.parametrize("name", KINDS)

#: Rows of one series each: forward and backward, of several lengths, one of zero length, one padded by its last time.
NAN = float("nan")
TIMES = torch.tensor(
    [[0.0, 0.5, 1.0, 2.0], [1.0, 0.2, -0.5, NAN], [0.0, 3.0, 3.0, 3.0], [1.0, 1.0, 1.0, 1.0], [2.0, 2.5, 4.0, 5.0]],
    dtype=F64,
)
LENGTHS = (4, 3, 2, 1, 4)


def vanderpol(t, y, mu):
    x, v = y[..., :1], y[..., 1:]
    return torch.cat((v * torch.cos(0.7 * t), mu * (1.0 - x**2) * v - x), -1)


def rows(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y0 = torch.randn(5, 2, dtype=F64, generator=generator)
    return y0, torch.rand(5, 1, dtype=F64, generator=generator) + 0.5


def solve(f, y0, t, *args, **options):
    options = {"rtol": 1e-6, "atol": 1e-8, "batching": "independent", **options}
    return pynode.solve(f, y0, t, args=args, **options)


def alone(f, y0, t, *args, **options):
    return pynode.solve(f, y0, t, args=args, **{"rtol": 1e-6, "atol": 1e-8, **options})


# Against a loop of single solves


@pytest.mark.parametrize("name", ADAPTIVE)
def test_rows_take_the_steps_they_would_take_alone(name):
    """Step for step the same decisions; the values differ by rounding, which this flow, not stiff, amplifies little."""
    y0, mu = rows()
    tolerance = 1e-4 if name in ("Fehlberg2", "AdaptiveHeun") else 1e-6
    options = {"algorithm": name, "rtol": tolerance, "atol": tolerance}
    sol = solve(vanderpol, y0, TIMES, PerSample(mu), **options)
    assert sol.ys.shape == (4, 5, 2)
    assert sol.ts.shape == (4, 5)
    for b, length in enumerate(LENGTHS):
        if length == 1:
            torch.testing.assert_close(sol.ys[:, b], y0[b].expand(4, 2), rtol=0, atol=0)
            continue
        one = alone(vanderpol, y0[b], TIMES[b, :length], mu[b], **options)
        torch.testing.assert_close(sol.ys[:length, b], one.ys, rtol=1e-10, atol=1e-10)
        counts = one.stats.forward
        found = [int(getattr(sol.row_stats, what)[b]) for what in ("nfe", "accepted", "rejected")]
        assert found == [counts.nfe, counts.accepted, counts.rejected]
    assert torch.isnan(sol.ys[3, 1]).all()  # the time there is NaN
    torch.testing.assert_close(sol.ys[3, 2], sol.ys[1, 2], rtol=0, atol=0)  # the last time again


@pytest.mark.parametrize(
    "controller",
    [
        *(pynode.PIController(), pynode.PIDController(0.3, 0.3, 0.05), pynode.IController(safety=0.8)),
        *(pynode.PredictiveController(), pynode.PredictiveController(deadband=1.0, safety=0.7)),
    ],
)
def test_controllers_keep_a_history_for_each_row(controller):
    y0, mu = rows()
    t = torch.tensor([0.0, 4.0], dtype=F64)
    sol = solve(vanderpol, y0, t, PerSample(mu), controller=controller)
    for b in range(5):
        one = alone(vanderpol, y0[b], t, mu[b], controller=controller)
        assert int(sol.row_stats.accepted[b]) == one.stats.forward.accepted
        torch.testing.assert_close(sol.ys[-1, b], one.ys[-1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "options",
    [
        {"dt0": 0.3},
        {"dtmax": 0.05},
        {"tstops": (0.7, 1.9, 3.0)},
        {"dtmin": 0.1, "force_dtmin": True},
        {"atol": torch.tensor([1e-3, 1e-9], dtype=F64)},
        {"norm": lambda e: e.abs().max()},
    ],
    ids=lambda options: "-".join(options),
)
def test_options_of_the_steps_mean_what_they_mean_for_one_solve(options):
    y0, mu = rows()
    t = torch.tensor([[0.0, 4.0], [1.0, -0.5], [0.5, 2.0], [0.0, 0.01], [-1.0, 2.5]], dtype=F64)
    sol = solve(vanderpol, y0, t, PerSample(mu), **options)
    for b in range(5):
        one = alone(vanderpol, y0[b], t[b], mu[b], **options)
        counts = one.stats.forward
        assert int(sol.row_stats.accepted[b]) == counts.accepted
        assert int(sol.row_stats.rejected[b]) == counts.rejected
        torch.testing.assert_close(sol.ys[-1, b], one.ys[-1], rtol=1e-9, atol=1e-9)


def test_the_order_of_the_batch_does_not_matter():
    y0, mu = rows()
    order = torch.tensor([3, 1, 4, 0, 2])
    sol = solve(vanderpol, y0, TIMES, PerSample(mu))
    other = solve(vanderpol, y0[order], TIMES[order], PerSample(mu[order]))
    torch.testing.assert_close(other.ys, sol.ys[:, order], rtol=1e-12, atol=1e-12, equal_nan=True)
    assert torch.equal(other.row_stats.nfe, sol.row_stats.nfe[order])


def test_joint_stepping_passes_per_sample_arguments_whole():
    y0, mu = rows()
    t = torch.tensor([0.0, 1.0], dtype=F64)
    joint = solve(vanderpol, y0, t, PerSample(mu), batching="joint")
    plain = solve(vanderpol, y0, t, mu, batching="joint")
    assert torch.equal(joint.ys, plain.ys)


def test_float32_rows_meet_their_tolerance():
    y0, mu = rows()
    sol = solve(vanderpol, y0.float(), TIMES, PerSample(mu.float()), rtol=1e-4, atol=1e-5)
    exact = solve(vanderpol, y0, TIMES, PerSample(mu), rtol=1e-10, atol=1e-10)
    assert sol.ys.dtype == torch.float32
    # Each of N < 100 steps errs by at most 1e-4 * (1 + |y|) in the root mean square, far less by the propagated order.
    torch.testing.assert_close(sol.ys.double(), exact.ys, rtol=1e-2, atol=1e-2, equal_nan=True)


# What the field sees


def test_the_field_sees_the_rows_that_are_still_running_and_their_part_of_the_arguments():
    seen = []

    def f(t, y, rate, shared):
        seen.append(y.shape[0])
        assert t.shape == (y.shape[0], 1, 1)
        assert rate["k"].shape[0] == y.shape[0]
        assert shared.shape == (7,)
        return -rate["k"][:, :, None] * y

    k = torch.tensor([[1.0], [2.0], [3.0]], dtype=F64)
    y0 = torch.ones(3, 2, 2, dtype=F64)
    t = torch.tensor([[0.0, 1.0], [0.0, 0.1], [0.0, 2.0]], dtype=F64)
    sol = solve(f, y0, t, PerSample({"k": k}), torch.zeros(7))
    assert set(seen) == {3, 2, 1}
    assert seen == sorted(seen, reverse=True)  # who has left does not come back
    exact = torch.exp(-k[:, 0] * t[:, 1])
    torch.testing.assert_close(sol.ys[-1], exact[:, None, None].expand(3, 2, 2), rtol=1e-5, atol=1e-6)
    assert sum(seen) == int(sol.row_stats.nfe.sum())
    assert len(seen) == sol.stats.forward.nfe


@pytest.mark.parametrize("reset", [False, True])
def test_the_work_of_a_finished_row_stops(reset):
    """A row over a hundredth of the span costs what it costs alone, whatever the others do."""
    y0, mu = rows()
    t = torch.tensor([[0.0, 5.0]] * 4 + [[0.0, 0.05]], dtype=F64)
    sol = solve(vanderpol, y0, t, PerSample(mu), algorithm="Fehlberg2" if reset else "Tsit5", rtol=1e-4, atol=1e-4)
    one = solve(vanderpol, y0[4:], t[4:], PerSample(mu[4:]), algorithm=sol.algorithm, rtol=1e-4, atol=1e-4)
    assert int(sol.row_stats.nfe[4]) == one.stats.forward.nfe < int(sol.row_stats.nfe[:4].min())


def test_tree_states_complex_leaves_and_module_fields():
    """Time comes as (b,) beside a tree."""

    class Rotor(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = torch.nn.Parameter(torch.tensor(0.5, dtype=F64))

        def forward(self, t, y):
            assert t.shape == y["x"].shape[:1] == y["z"][0].shape[:1]
            return {"x": -self.rate * y["x"], "z": [1j * t[:, None] * y["z"][0]]}

    y0 = {"x": torch.ones(3, dtype=F64), "z": [torch.ones(3, 2, dtype=torch.complex128)]}
    t = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 2.0]], dtype=F64)
    sol = solve(Rotor(), y0, t, rtol=1e-9, atol=1e-9)
    assert sol.ys["x"].shape == (2, 3)
    assert sol.ys["z"][0].shape == (2, 3, 2)
    span = t[:, 1] - t[:, 0]
    torch.testing.assert_close(sol.ys["x"][-1], torch.exp(-0.5 * span), rtol=1e-7, atol=1e-7)
    angle = (t[:, 1] ** 2 - t[:, 0] ** 2) / 2
    torch.testing.assert_close(sol.ys["z"][0][-1, :, 0], torch.exp(1j * angle), rtol=1e-7, atol=1e-7)
    sol.ys["z"][0][-1].real.sum().backward()
    sol = solve(Rotor(), y0, t)
    assert isinstance(sol, pynode.BatchSolution)


# Times


def jagged(series):
    return torch.nested.nested_tensor(series, layout=torch.jagged)


@pytest.mark.parametrize("form", [lambda x: x, jagged], ids=["list", "jagged"])
def test_series_of_several_lengths(form):
    y0, mu = rows()
    series = [TIMES[b, :length] for b, length in enumerate(LENGTHS)]
    sol = solve(vanderpol, y0, form(series), PerSample(mu))
    padded = solve(vanderpol, y0, TIMES, PerSample(mu))
    for b, length in enumerate(LENGTHS):
        assert torch.equal(sol.ys[:length, b], padded.ys[:length, b])
        assert torch.isnan(sol.ys[length:, b]).all()
        assert torch.equal(sol.ts[:length, b], TIMES[b, :length])


def test_saveat_for_all_and_for_each_row_never_changes_the_steps():
    y0, mu = rows()
    ends = torch.tensor([[0.0, 4.0], [1.0, -0.5], [0.5, 3.0], [0.9, 3.0], [-1.0, 2.5]], dtype=F64)
    own = ends[:, :1] + torch.linspace(0, 1, 30, dtype=F64) * (ends[:, 1:] - ends[:, :1])
    plain = solve(vanderpol, y0, ends, PerSample(mu))
    each = solve(vanderpol, y0, ends, PerSample(mu), saveat=own)
    assert torch.equal(plain.ys[-1], each.ys[-1])
    assert torch.equal(plain.row_stats.accepted, each.row_stats.accepted)
    forward = ends[[0, 2, 3, 4]]
    shared = solve(vanderpol, y0[[0, 2, 3, 4]], forward, PerSample(mu[[0, 2, 3, 4]]), saveat=[1.0, 1.5, 2.0])
    assert shared.ts.shape == (3,)
    for i, b in enumerate((0, 2, 3, 4)):
        one = alone(vanderpol, y0[b], ends[b], mu[b], saveat=[1.0, 1.5, 2.0])
        torch.testing.assert_close(shared.ys[:, i], one.ys, rtol=1e-10, atol=1e-10)
    for b in range(5):
        one = alone(vanderpol, y0[b], ends[b], mu[b], saveat=own[b])
        torch.testing.assert_close(each.ys[:, b], one.ys, rtol=1e-9, atol=1e-9)


@every_kind
def test_dense_output_of_every_row(name):
    y0, mu = rows()
    t = torch.tensor([[0.0, 2.0], [2.0, 0.0], [0.5, 1.5], [0.9, 1.1], [-1.0, 2.5]], dtype=F64)
    options = {"algorithm": name, "rtol": 1e-4, "atol": 1e-6}
    sol = solve(vanderpol, y0, t, PerSample(mu), **options)
    at = torch.tensor([1.0, 0.95, 1.05], dtype=F64)
    own = t[:, :1] + torch.tensor([0.9, 0.0, 0.3, 1.0], dtype=F64) * (t[:, 1:] - t[:, :1])
    assert sol(1.0).shape == (5, 2)
    common, each, slopes = sol(at), sol(own), sol.derivative(at)
    assert common.shape == slopes.shape == (3, 5, 2)
    assert each.shape == (4, 5, 2)
    for b in range(5):
        one = alone(vanderpol, y0[b], t[b], mu[b], **options)
        torch.testing.assert_close(common[:, b], one(at), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(each[:, b], one(own[b]), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(slopes[:, b], one.derivative(at), rtol=1e-9, atol=1e-9)


# Hard cases


def test_an_empty_batch():
    y0 = torch.empty(0, 3, dtype=F64, requires_grad=True)
    sol = solve(lambda t, y: y / 0, y0, torch.linspace(0, 1, 4, dtype=F64))
    assert sol.ys.shape == (4, 0, 3)
    assert sol.retcode is ReturnCode.Success
    assert sol.retcodes == []
    sol.ys.sum().backward()
    assert y0.grad is not None
    assert solve(lambda t, y: y, y0, torch.empty(0, 2, dtype=F64)).ys.shape == (2, 0, 3)


def test_a_batch_of_a_million_rows_in_little_memory():
    """A row has 8 bytes of state; stages, save points and the numbers that steer it are some dozens more of these."""
    count = 10**6
    rate = torch.linspace(0.1, 1.0, count, dtype=F64)
    y0, t = torch.ones(count, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sol = solve(lambda t, y, k: -k * y, y0, t, PerSample(rate), rtol=1e-3, atol=1e-4, saveat=pynode.SaveAt(dense=False))
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    torch.testing.assert_close(sol.ys[-1], torch.exp(-rate), rtol=1e-3, atol=1e-3)
    assert grown < 80 * 8 * count


def blows_up(t, y, k):
    """dy/dt = k y^2: y = y0 / (1 - k y0 t), infinite at t = 1 / (k y0)."""
    return k * y**2


def test_one_row_blows_up_and_the_others_do_not_notice():
    k = torch.tensor([[0.1], [2.0], [0.3]], dtype=F64)
    y0, t = torch.ones(3, 1, dtype=F64), torch.tensor([0.0, 0.25, 0.4, 0.7, 1.0], dtype=F64)
    with pytest.raises(pynode.SolveError, match=r"1 of 3 rows failed \(1 \w+\): row 1 at t = 0\.(5|4999)") as caught:
        solve(blows_up, y0, t, PerSample(k))
    assert caught.value.t == pytest.approx(0.5, abs=1e-6)
    sol = solve(blows_up, y0, t, PerSample(k), throw=False)
    assert [code.successful for code in sol.retcodes] == [True, False, True]
    assert sol.retcode is sol.retcodes[1]
    assert torch.isfinite(sol.ys[:3, 1]).all()
    assert torch.isnan(sol.ys[3:, 1]).all()
    assert "throw=False" in sol.message
    assert sol.span[1].tolist() == pytest.approx([1.0, 0.5, 1.0], abs=1e-6)
    without = solve(blows_up, y0[[0, 2]], t, PerSample(k[[0, 2]]))
    torch.testing.assert_close(sol.ys[:, [0, 2]], without.ys, rtol=1e-13, atol=1e-13)
    assert torch.equal(sol.row_stats.accepted[[0, 2]], without.row_stats.accepted)
    assert torch.isnan(sol(0.9)[1]).all()
    assert torch.isfinite(sol(0.9)[[0, 2]]).all()


def test_every_way_to_fail_is_a_row_of_its_own():
    """Rows: fine, NaN at the start, a jump to NaN, too many steps."""

    def f(t, y, kind):
        nan = torch.full_like(y, NAN)
        fast = 1e4 * torch.cos(1e4 * t)
        dy = torch.where((kind == 1) | ((kind == 2) & (t > 0.5)), nan, -y)
        return torch.where(kind == 3, fast, dy)

    kind = torch.tensor([[0], [1], [2], [3]])
    y0, t = torch.ones(4, 1, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    sol = solve(f, y0, t, PerSample(kind), throw=False, max_steps=200)
    expected = [ReturnCode.Success, ReturnCode.InitialFailure, ReturnCode.Unstable, ReturnCode.MaxIters]
    assert sol.retcodes == expected
    assert torch.isnan(sol.ys[1, 1:]).all()
    assert sol.row_stats.accepted[3] + sol.row_stats.rejected[3] == 200
    with pytest.raises(pynode.SolveError, match="3 of 4 rows failed"):
        solve(f, y0, t, PerSample(kind), max_steps=200)
    floor = solve(lambda t, y: 1e3 * torch.cos(1e3 * t) + 0 * y, y0[:1], t, dtmin=0.1, throw=False)
    assert floor.retcodes == [ReturnCode.DtLessThanMin]


@pytest.mark.parametrize("span", [1e-12, 1e12])
def test_extreme_spans(span):
    y0 = torch.tensor([[1.0], [2.0]], dtype=F64)
    t = torch.tensor([[0.0, span], [span, 0.0]], dtype=F64)
    sol = solve(lambda t, y: -y / span, y0, t)
    exact = y0[:, 0] * torch.exp(torch.tensor([-1.0, 1.0], dtype=F64))
    torch.testing.assert_close(sol.ys[-1, :, 0], exact, rtol=1e-5, atol=1e-5)


# Bad input


def field(t, y):
    return -y


def bad(**options):
    base = {"f": field, "y0": torch.ones(2, 1, dtype=F64), "t": torch.tensor([0.0, 1.0], dtype=F64)}
    base.update(options)
    f, y0, t = (base.pop(name) for name in ("f", "y0", "t"))
    return pynode.solve(f, y0, t, batching=base.pop("batching", "independent"), **base)


TWO = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=F64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batching": "rows"}, "batching = 'rows'"),
        ({"y0": torch.ones(())}, r"shape \(\)"),
        ({"y0": (torch.ones(2), torch.ones(3))}, "3 rows"),
        ({"t": torch.zeros(3, 2)}, r"t has shape \(3, 2\)"),
        ({"t": torch.tensor([[0.0, 1.0, 0.5], [0.0, 1.0, 2.0]])}, r"t\[0\].*not strictly monotone"),
        ({"t": torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 2.0]])}, r"t\[1\].*not strictly monotone"),
        ({"t": torch.tensor([[0.0, 1.0, 2.0], [0.0, NAN, 2.0]])}, r"t\[1\].*NaN between"),
        ({"t": torch.tensor([[0.0, 1.0], [NAN, NAN]])}, r"t\[1\].*no finite time"),
        ({"t": torch.tensor([[0.0, 1.0], [0.0, float("inf")]])}, r"t\[1\].*infinite"),
        ({"saveat": [0.5, 1.5]}, "leaves the row's span in row 0"),
        ({"saveat": torch.tensor([[0.0, 0.5], [0.9, 0.1]])}, "runs against t in row 1"),
        ({"args": (PerSample(torch.ones(3)),), "f": lambda t, y, k: y}, r"PerSample\(...\) is shape \(3,\)"),
        ({"args": (PerSample(2.0),), "f": lambda t, y, k: y}, r"PerSample\(...\) is a float"),
        ({"max_steps": 0}, "max_steps"),
        ({"rtol": torch.ones(3)}, "rtol has shape"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(pynode.InputError, match=message):
        bad(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "RK4"}, "RK4"),
        ({"algorithm": "ReversibleHeun"}, "ReversibleHeun"),
        ({"backend": "julia"}, "julia"),
        ({"sensealg": pynode.GaussAdjoint()}, "GaussAdjoint"),
        ({"sensealg": pynode.CheckpointedAdjoint(checkpoints=4)}, "bound on the stored"),
        ({"compile": "step"}, "compile="),
        ({"running_cost": lambda t, y: y.sum()}, "running_cost="),
        ({"d_discontinuities": [0.5]}, "d_discontinuities="),
        ({"saveat": pynode.SaveAt(steps=True)}, "steps=True"),
    ],
)
def test_what_is_not_offered_is_refused_with_a_remedy(options, message):
    with pytest.raises(pynode.UnsupportedError, match=message) as caught:
        bad(**options)
    assert "Remedy" in str(caught.value)


def test_a_field_that_fixes_the_number_of_rows_is_told():
    k = torch.ones(3, 1, dtype=F64)
    t = torch.tensor([[0.0, 1.0], [0.0, 0.1], [0.0, 2.0]], dtype=F64)
    with pytest.raises(pynode.FieldError, match=r"PerSample"):
        solve(lambda t, y: k.expand(3, 1) * 1.0, torch.ones(3, 1, dtype=F64), t)


def test_a_controller_of_ones_own_is_refused():
    class Own(pynode.PIDController):
        def propose(self, ratio, order, history):
            return True, 1.0, history

    with pytest.raises(pynode.UnsupportedError, match="overrides propose"):
        bad(controller=Own())


def test_dense_output_says_where_it_ends():
    sol = bad(t=torch.tensor([[0.0, 1.0], [0.0, 0.5]], dtype=F64))
    with pytest.raises(pynode.InputError, match=r"in row 1 \[0, 0.5\]"):
        sol(0.7)
    with pytest.raises(pynode.InputError, match=r"\(M,\) or \(2, M\)"):
        sol(torch.zeros(3, 1, dtype=F64))
    with pytest.raises(pynode.UnsupportedError, match="dense=True"):
        bad(saveat=pynode.SaveAt(dense=False))(0.5)
    assert "2 Success" in repr(sol)
