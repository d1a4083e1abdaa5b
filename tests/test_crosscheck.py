"""The cross-check agrees where all is well, and names what is planted."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import types

import pytest
import torch

import pynode
from pynode import backends
from pynode.crosscheck.report import AGREES, DISAGREES, FAILED, NOT_OFFERED, NOT_REACHED, REFUSED
from pynode.crosscheck.verdict import refined
from pynode.errors import InputError
from pynode.native import backend as native
from pynode.problems import PROBLEMS, WeightedLoss

QUICK = {"oracles": (), "directions": 1, "repeats": 1, "algorithms": ["tsit5"], "rtol": 1e-5, "atol": 1e-7}
T = [0.0, 0.5, 1.0]
Y0 = torch.tensor([1.0, 0.5], dtype=torch.float64)


class Pendulum(torch.nn.Module):
    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.length = torch.nn.Parameter(torch.tensor(1.5, dtype=dtype))
        self.friction = torch.nn.Parameter(torch.tensor([0.2], dtype=dtype))

    def forward(self, t, y):
        return torch.stack((y[1], -torch.sin(y[0]) / self.length - self.friction[0] * y[1]))


def check(f=None, y0=Y0, t=T, **options):
    return pynode.crosscheck(Pendulum() if f is None else f, y0, t, **{**QUICK, **options})


def rows_of(report, name):
    return [row for row in report.rows if row.sensealg == name]


def test_all_that_is_offered_agrees_on_a_healthy_problem():
    report = check()
    assert report.ok, str(report)
    offered = [row for row in report.rows if row.verdict != NOT_OFFERED]
    # Tsit5 cannot be run backward, and only Julia has the adaptive quadrature on each step.
    assert {row.sensealg for row in offered} == {cls.__name__ for cls in pynode.sensealg_names.SENSEALGS} - {
        "ReversibleAdjoint",
        "GaussKronrodAdjoint",
    }
    assert {row.sensealg for row in report.rows} == {cls.__name__ for cls in pynode.sensealg_names.SENSEALGS}
    for row in offered:
        assert row.verdict == AGREES
        assert set(row.errors) == {"solution", "y0", "parameters"}
        assert set(row.allowed) == {"solution", "y0", "parameters.length", "parameters.friction"}
        assert 0 < row.gradient_error < 1e-4
        assert row.forward.nfe > 0
        assert row.forward.nvjp + row.backward.nvjp > 0  # forward sensitivities have theirs in the solve
        assert row.seconds > 0
        assert row.memory > 0
    direct, checkpointed = (rows_of(report, name)[0] for name in ("DirectAdjoint", "CheckpointedAdjoint"))
    assert direct.memory > checkpointed.memory
    assert all(abs(x.gradient - x.difference) < 1e-6 * abs(x.gradient) for x in report.differences)


class _Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.save_for_backward(x)
        ctx.factor = factor
        return torch.sin(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return ctx.factor * g * torch.cos(x), None


@pytest.mark.parametrize("factor", [1.0, 1.001], ids=["right", "wrong"])
def test_a_wrong_backward_of_the_field_is_found_by_finite_differences(factor):
    report = check(lambda t, y: torch.stack((y[1], -_Wrong.apply(y[0], factor))), directions=2)
    assert report.ok == (factor == 1.0), str(report)
    if not report.ok:
        assert not any(x.agrees for x in report.differences)
        assert report.disagreements[0].culprit.startswith("the derivative of f itself")


def test_steps_unstable_in_directions_that_are_not_excited_are_found_out():
    # The second component is zero and stays so: steps fit for the first alone blow up its discrete derivative.
    def f(t, y):
        return torch.tensor([-1.0, -300.0], dtype=torch.float64) * y

    y0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    report = check(f, y0, sensealgs=["checkpointed"])
    assert not report.ok
    assert "unstable in directions that y0 does not excite" in str(report.disagreements[0])
    if importlib.util.find_spec("scipy"):
        report = check(f, y0, sensealgs=["checkpointed"], reference="scipy:LSODA")
        assert all(x.agrees for x in report.differences)
        assert [x.quantity for x in report.disagreements] == ["y0"]


@pytest.mark.parametrize(
    ("sensealg", "error"),
    [(pynode.CheckpointedAdjoint, 1e-2), (pynode.CheckpointedAdjoint, 1e-9), (pynode.BacksolveAdjoint, 1e-2)],
    ids=["checkpointed", "checkpointed-slightly", "backsolve"],
)
@pytest.mark.parametrize("part", ["y0", "parameters.friction"])
def test_a_planted_sensealg_is_named(sensealg, error, part, monkeypatch):
    true = native._PULL_BACKS[sensealg]

    def planted(record, query, cotangents):
        found = true(record, query, cotangents)
        if part == "y0":
            found.y0 = found.y0 * (1 + error)
        else:
            found.parameters[1] = found.parameters[1] * (1 + error)
        return found

    monkeypatch.setitem(native._PULL_BACKS, sensealg, planted)
    report = check()
    assert not report.ok
    (found,) = report.disagreements
    assert f"torch / Tsit5 / {sensealg.__name__} " in found.culprit
    assert found.quantity == part
    assert part in str(found)
    assert rows_of(report, sensealg.__name__)[0].verdict == DISAGREES


def _planted_backend(monkeypatch, solve):
    class Planted(native.NativeBackend):
        name = "planted"

    Planted.solve = solve
    backends._loaded.cache_clear()  # another test's plant
    module = types.ModuleType("planted_backend")
    module.BACKEND = Planted()
    monkeypatch.setitem(sys.modules, "planted_backend", module)
    monkeypatch.setitem(backends._REGISTRY, "planted", "planted_backend")


def test_a_planted_backend_is_named(monkeypatch):
    def solve(self, request):
        f = request.problem.f
        request.problem.f = lambda t, y: 1.01 * f(t, y)
        return native.NativeBackend.solve(self, request)

    _planted_backend(monkeypatch, solve)
    report = check(sensealgs=["checkpointed"])
    assert [row.verdict for row in report.rows] == [AGREES, DISAGREES]
    (found,) = report.disagreements
    assert found.culprit.startswith("planted / Tsit5 / CheckpointedAdjoint")
    assert found.quantity == "solution"


def test_a_crash_is_a_row_and_not_ok(monkeypatch):
    def solve(self, request):
        raise ZeroDivisionError("planted")

    _planted_backend(monkeypatch, solve)
    report = check(sensealgs=["checkpointed"])
    assert [row.verdict for row in report.rows] == [AGREES, FAILED]
    assert "ZeroDivisionError: planted" in str(report.disagreements[0])
    assert not report.ok


def test_what_a_combination_refuses_itself_is_no_disagreement():
    # Backward in time errors grow by exp(15) from one saved time to the other: the state cannot be reconstructed.
    report = check(lambda t, y: -30.0 * (y - torch.cos(t)), sensealgs=["checkpointed", "backsolve"])
    assert report.ok, str(report)
    (row,) = rows_of(report, "BacksolveAdjoint")
    assert row.verdict == REFUSED
    assert "cannot be trusted" in row.message
    assert not row.errors


@pytest.mark.parametrize(
    "algorithm",
    [pynode.RK4(steps=10), pynode.Heun(dt=0.05), pynode.RK4(), pynode.RK4(mesh=lambda t: torch.linspace(0, 1, 9))],
    ids=["steps", "dt", "plain", "mesh"],
)
def test_fixed_steps_are_judged_by_their_convergence(algorithm, monkeypatch):
    options = {"algorithms": [algorithm], "sensealgs": ["direct", "checkpointed"]}
    report = check(**options)
    assert report.ok, str(report)
    true = native._PULL_BACKS[pynode.CheckpointedAdjoint]

    def planted(record, query, cotangents):
        found = true(record, query, cotangents)
        found.y0 = found.y0 * 1.01
        return found

    monkeypatch.setitem(native._PULL_BACKS, pynode.CheckpointedAdjoint, planted)
    assert [x.quantity for x in check(**options).disagreements] == ["y0"]


def test_refinement():
    assert refined(pynode.Tsit5(), 1e-5, 1e-7, torch.float64)[1:] == pytest.approx((1e-6, 1e-8))
    assert refined(pynode.Tsit5(), 1e-6, 1e-8, torch.float32)[1:] == pytest.approx((1e-5, 1e-7))
    assert refined(pynode.RK4(dt=0.5), 1.0, 1.0, torch.float64)[0] == pynode.RK4(dt=0.25)
    assert refined(pynode.RK4(steps=5), 1.0, 1.0, torch.float64)[0] == pynode.RK4(steps=10)
    mesh = refined(pynode.RK4(), 1.0, 1.0, torch.float64)[0].mesh
    assert mesh(torch.tensor([0.0, 1.0, 4.0])).tolist() == [0.0, 0.5, 1.0, 2.5, 4.0]


def test_float32_is_compared_with_a_float64_copy():
    report = check(Pendulum(torch.float32), Y0.float())
    assert report.ok, str(report)
    assert "float64" in report.reference
    assert report.notes == []
    assert all(row.gradient_error > 1e-9 for row in report.rows if row.measured)


def test_a_closure_that_cannot_be_copied_is_said_to_be_its_own_reference():
    weight = torch.tensor([0.5, -0.3], requires_grad=True)
    report = check(lambda t, y: torch.tanh(weight * y), Y0.float(), rtol=1e-4, atol=1e-5)
    assert report.ok, str(report)
    assert "float32" in report.reference
    assert "cannot be copied to float64" in report.notes[0]
    assert "parameters" in report.rows[0].errors


def test_trees_arguments_and_times():
    y0 = {"a": torch.ones(2, dtype=torch.float64), "b": torch.tensor([0.5j], dtype=torch.complex128)}
    rate = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)

    def f(t, y, rate, sign):
        return {"a": sign * rate * y["a"] * y["b"].abs(), "b": 1j * y["b"] * rate * torch.cos(t)}

    t = torch.tensor(T, dtype=torch.float64, requires_grad=True)
    report = check(f, y0, t, args=(rate, -1.0))
    assert report.ok, str(report)
    assert all(set(row.errors) == {"solution", "y0", "args[0]", "t"} for row in report.rows if row.measured)


def test_a_loss_and_params_of_the_user():
    field = Pendulum()
    report = check(field, loss=lambda ys: ys[-1, 0] ** 2, params=[field.length])
    assert report.ok, str(report)
    allowed = next(row.allowed for row in report.rows if row.measured)
    assert set(allowed) == {"solution", "y0", "parameters.length"}


def test_the_users_model_is_left_as_it_was():
    field = Pendulum()
    before = {name: (p, p.detach().clone()) for name, p in field.named_parameters()}
    y0 = Y0.clone()
    assert check(field, y0).ok
    for name, p in field.named_parameters():
        assert p is before[name][0]
        assert torch.equal(p, before[name][1])
        assert p.grad is None
        assert p.requires_grad
    assert torch.equal(y0, Y0)
    assert not y0.requires_grad


@pytest.mark.parametrize("oracle", ["scipy", "scipy:LSODA", "torchdiffeq", "diffrax"])
def test_oracles_agree(oracle):
    pytest.importorskip(oracle.partition(":")[0])
    problem = PROBLEMS["harmonic"].build()
    options = {**QUICK, "oracles": [oracle], "sensealgs": ["checkpointed"], "backends": ["torch"]}
    report = pynode.crosscheck(problem, t=torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64), **options)
    assert report.ok, str(report)
    assert report.absent == {}
    rows = [row for row in report.rows if row.backend == oracle.partition(":")[0]]
    assert len(rows) == (2 if oracle == "torchdiffeq" else 1)
    assert all(row.verdict == AGREES and 0 < row.gradient_error < 1e-3 for row in rows)


def test_scipy_differentiates_complex_trees_and_arguments():
    pytest.importorskip("scipy")
    y0 = (torch.ones(2, dtype=torch.float64), torch.tensor([0.5j], dtype=torch.complex128))
    rate = torch.tensor([0.3 + 0.1j], dtype=torch.complex128, requires_grad=True)
    f = lambda t, y, rate: (-y[0] * rate.abs(), rate * y[1])  # noqa: E731
    report = check(f, y0, args=(rate,), oracles=["scipy"], sensealgs=["checkpointed"])
    assert report.ok, str(report)
    assert [row.backend for row in report.rows if row.measured] == ["torch", "scipy"]


def test_scipy_can_be_the_reference():
    pytest.importorskip("scipy")
    report = check(sensealgs=["checkpointed"], reference="scipy")
    assert report.ok, str(report)
    assert report.reference.startswith("scipy")


def test_what_is_not_installed_is_absent(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchdiffeq" else find(name))
    report = check(sensealgs=["checkpointed"], oracles=["torchdiffeq"], backends=["torch"])
    assert report.ok
    assert report.absent == {"torchdiffeq": "not installed (pip install torchdiffeq)"}


def test_forward_sensitivity_only_for_few_inputs(monkeypatch):
    monkeypatch.setattr(native.NativeBackend, "supports", lambda self, algorithm, sensealg: None)
    report = check(forward_limit=3, sensealgs=["forwardsensitivity", "checkpointed"])
    (row,) = rows_of(report, "ForwardSensitivity")
    assert row.verdict == NOT_OFFERED
    assert "4 differentiated numbers, more than forward_limit = 3" in row.message


def test_without_time_left_rows_are_not_begun():
    report = check(budget=0.0)
    assert {row.verdict for row in report.rows} <= {NOT_REACHED, NOT_OFFERED}
    assert not report.ok  # nothing was compared
    assert "out of time" in str(report)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"oracles": ["matlab"]}, "unknown oracle 'matlab'"),
        ({"reference": "Euler"}, "reference = 'Euler'"),
        ({"directions": 0}, "directions = 0"),
        ({"backends": ["fortran"]}, "unknown backend 'fortran'"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(InputError, match=message):
        check(sensealgs=["checkpointed"], **options)


def test_a_reference_that_fails_says_what_to_do():
    with pytest.raises(InputError, match=r"reference solve by Vern9.*scipy:LSODA"):
        check(lambda t, y: y**2 * 5.0)


def test_the_report_as_table_json_and_picture(tmp_path):
    report = check(sensealgs=["checkpointed", "backsolve"], tolerances=[1e-3, 1e-5])
    assert report.ok, str(report)
    assert [row.rtol for row in report.rows] == [1e-3, 1e-3, 1e-5, 1e-5]
    assert [row.atol for row in report.rows] == pytest.approx([1e-5, 1e-5, 1e-7, 1e-7])
    loose, tight = (row.gradient_error for row in rows_of(report, "CheckpointedAdjoint"))
    assert tight < loose
    assert "CheckpointedAdjoint" in report.plain()
    report.to_json(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["ok"] is True
    assert [row["verdict"] for row in content["rows"]] == [AGREES] * 4
    assert content["rows"][0]["errors"]["y0"] == report.rows[0].errors["y0"]
    pytest.importorskip("matplotlib")
    report.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    from pynode.crosscheck.plot import curves

    assert [len(rows) for rows in curves(report).values()] == [2, 2]
    assert all(a.rtol > b.rtol for a, b in curves(report).values())


def test_numbers_that_json_lacks_are_null(tmp_path):
    report = check(budget=0.0, sensealgs=["checkpointed"])
    report.to_json(tmp_path / "report.json")
    (row,) = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert math.isnan(report.rows[0].seconds)
    assert row["seconds"] is None


def test_a_picture_of_nothing_is_refused(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(InputError, match="no combination has a gradient to draw"):
        check(budget=0.0, sensealgs=["checkpointed"]).plot(tmp_path / "a.png")


def test_rich_is_not_needed(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rich" else find(name))
    report = check(sensealgs=["checkpointed"])
    report.print()
    assert report.plain() in capsys.readouterr().out
    assert report.table() == report.plain()


def test_the_default_loss_is_the_documented_one():
    one = check(sensealgs=["direct"], seed=4)
    other = check(sensealgs=["direct"], seed=4, loss=WeightedLoss(4))
    assert one.rows[0].errors == other.rows[0].errors


def test_differences_stay_inside_the_fields_domain():
    # From a start below -1e-5 this ends at once; differences of the usual size, 1e-4, would start there.
    def f(t, y):
        return torch.stack((-y[0], 0.1 - 1e9 * y[1] ** 2)) if y[1] > -1e-5 else y * math.nan

    y0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    # Tolerances that see the small component.
    report = check(f, y0, [0.0, 1e-4, 2e-4], sensealgs=["checkpointed"], rtol=1e-8, atol=1e-11)
    assert all(x.agrees for x in report.differences)
    assert report.ok, str(report)


def test_a_backend_that_is_not_installed_is_absent(monkeypatch):
    from pynode.julia import runtime

    monkeypatch.setattr(runtime, "installed", lambda: False)
    monkeypatch.setattr(runtime, "started", lambda: False)
    report = check(sensealgs=["checkpointed"])
    assert "pynode julia setup" in report.absent["julia"]
    assert {row.backend for row in report.rows} == {"torch"}
