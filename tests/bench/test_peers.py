"""``python -m pynode.bench peers``: the same fields for every library, small runs, and what is said of failures."""

from __future__ import annotations

import json

import pytest
import torch

import pynode
from pynode.bench.__main__ import main
from pynode.bench.fields import Case, spiral
from pynode.bench.own_tier import own_tier
from pynode.bench.peers import line_up, measure
from pynode.bench.peers.contestant import Contestant, tensors
from pynode.bench.peers.fields import PROBLEMS_BY_NAME, ConvolutionalBlock, TracedField
from pynode.bench.peers.lines import Comparison
from pynode.bench.peers.scipy_solver import scipy_solve
from pynode.bench.peers.tables import claims, comparisons, failures, ratios, table
from pynode.bench.reference import reference
from pynode.bench.stages import stages
from pynode.bench.timing import Spread
from pynode.compile_stats import COUNTS
from pynode.demo.models import Block
from pynode.errors import UnsupportedError
from pynode.problems import PROBLEMS

OTHERS = ["torchode", "torchdyn", "diffrax", "julia"]


@pytest.mark.parametrize("name", PROBLEMS_BY_NAME)
def test_draws_are_reproducible_and_compared_at_a_tolerance_of_their_line(name):
    problem = PROBLEMS_BY_NAME[name]
    case, again, other = (problem.draw(seed, True) for seed in (1, 1, 2))
    assert torch.equal(case.y0, again.y0)
    assert not torch.equal(case.y0, other.y0)
    for a, b in zip(case.field.parameters(), again.field.parameters(), strict=True):
        assert torch.equal(a, b)
    assert case.rtol in problem.rtols
    assert list(problem.rtols) == sorted(problem.rtols, reverse=True)
    assert case.field(case.t[0], case.y0).shape == case.y0.shape


def test_sizes_are_those_that_were_promised():
    shapes = {name: tuple(problem.draw(0, False).y0.shape) for name, problem in PROBLEMS_BY_NAME.items()}
    assert shapes == {
        "spiral": (20, 2),
        "mlp": (256, 64),
        "cnf": (512, 3),
        "convolution": (32, 64, 7, 7),
        "lotka-volterra": (2,),
    }
    assert sum(p.numel() for p in PROBLEMS_BY_NAME["mlp"].draw(0, False).field.parameters()) == 33_088


def test_the_flow_carries_minus_the_trace_of_its_jacobian():
    field = TracedField((3, 5, 4, 3)).double()
    y = torch.randn(6, 4, dtype=torch.float64)
    slope = field(torch.tensor(0.0), y)
    jacobians = torch.func.vmap(torch.func.jacrev(lambda z: field(torch.tensor(0.0), torch.cat((z, z[:1]))[None])[0]))(
        y[:, :3]
    )
    traces = jacobians[:, :3].diagonal(dim1=1, dim2=2).sum(dim=1)
    torch.testing.assert_close(slope[:, 3], -traces)
    torch.testing.assert_close(field(torch.tensor(0.0), y + torch.tensor([0.0, 0.0, 0.0, 1.0])), slope)


def test_the_block_is_the_demos_with_a_time_of_each_row():
    block, demo = ConvolutionalBlock(8, 8), Block(8)
    if demo.norm1.num_groups != 8:
        block = ConvolutionalBlock(8, demo.norm1.num_groups)
    block.load_state_dict(demo.state_dict())
    y = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(block(torch.tensor(0.3), y), demo(torch.tensor(0.3), y))
    rows = block(torch.tensor([0.3, 0.7]), y)
    torch.testing.assert_close(rows[1:], block(torch.tensor(0.7), y[1:]))


@pytest.mark.parametrize("name", [*PROBLEMS_BY_NAME, "brusselator"])
def test_the_fields_in_jax_are_those_in_torch_with_their_pullbacks(name):
    jax = pytest.importorskip("jax")
    from pynode.bench.peers.diffrax_solver import check_field, precision
    from pynode.bench.peers.jax_fields import jax_field

    if name == "brusselator":
        built = PROBLEMS["brusselator-2d"].build(size=4)
        case = Case(name, name, built.field, built.y0, built.t[[0, -1]], 1e-5, 1e-5)
    else:
        case = PROBLEMS_BY_NAME[name].draw(0, True)
    with precision(case.y0.dtype):
        check_field(case)
        y0 = case.y0.clone().requires_grad_()
        value = case.field(case.t[1], y0)
        cotangent = torch.randn(value.shape, dtype=value.dtype)
        ours = torch.autograd.grad(value, [y0, *case.field.parameters()], cotangent, materialize_grads=True)
        weights = [jax.numpy.asarray(p.detach().numpy()) for p in case.field.parameters()]
        field, t = jax_field(case.field), jax.numpy.asarray(case.t[1].numpy())
        _, pull = jax.vjp(lambda y, p: field(t, y, p), jax.numpy.asarray(case.y0.numpy()), weights)
        slope, slopes = pull(jax.numpy.asarray(cotangent.numpy()))
        tolerance = 1e4 * torch.finfo(value.dtype).eps
        for a, b in zip(tensors([slope, *slopes]), ours, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())


def test_another_field_in_jax_is_noticed(monkeypatch):
    pytest.importorskip("jax")
    from pynode.bench.peers import diffrax_solver

    case = spiral(0)
    monkeypatch.setattr(diffrax_solver, "jax_field", lambda module: lambda t, y, p: 1.01 * y)
    with pytest.raises(AssertionError, match="differs"):
        diffrax_solver.check_field(case)


def test_scipy_solves_the_same_problem():
    pytest.importorskip("scipy")
    case = PROBLEMS_BY_NAME["lotka-volterra"].draw(0, True)
    with torch.no_grad():
        ours = pynode.solve(case.field, case.y0, case.t, algorithm=pynode.Vern9(), rtol=1e-12, atol=1e-12).ys[-1]
    torch.testing.assert_close(scipy_solve(case)(), ours, rtol=1e-5, atol=1e-5)


def test_a_failure_is_a_row_and_a_note_and_no_figure():
    def broken(case):
        raise RuntimeError("it broke\nin two lines")

    def wild(case):
        return lambda: case.y0 * float("nan")

    case = PROBLEMS_BY_NAME["lotka-volterra"].draw(0, True)
    contestants = [
        *line_up.line_up(False, ["eager"], [*line_up.NEEDS, "julia"]),
        Contestant("broken", broken),
        Contestant("wild", wild),
    ]
    with stages("test", 5) as progress:
        found = measure.lines(contestants, [case], [reference(case)], [1e-6], 2, False, progress)
    assert [line.name for line in found] == ["pynode eager", "broken", "wild"]
    assert (found[1].failures, found[1].timings) == ({1e-6: "RuntimeError: it broke"}, {})
    assert "not finite" in found[2].failures[1e-6]
    shown = table(case, "forward", found, ["eager"])
    assert [row[1] for row in shown.rows][1:] == ["failed", "failed"]
    assert all(len(row) == len(shown.columns) for row in shown.rows)
    assert len(failures(case, "forward", found)) == 2
    compared = comparisons(case, found, ["eager"])
    assert ratios(case, "forward", compared) == {}
    assert found[0].errors[1e-6] < 1e-3
    assert claims(case, "forward", compared, False, True) == []


def test_absent_libraries_are_named(monkeypatch, capsys, tmp_path):
    file = tmp_path / "peers.json"
    monkeypatch.setitem(line_up.NEEDS, "torchdyn", ("no_such_module",))
    flags = ["--fields", "lotka-volterra", "--directions", "forward", "--quick", "--json", str(file)]
    assert main(["peers", *flags, "--without", "torchdiffeq", "torchode", "diffrax", "julia"]) == 0
    printed = capsys.readouterr().out
    assert "absent: torchdyn: no_such_module not installed" in printed
    assert "left out: torchode" in printed
    written = json.loads(file.read_text())
    assert written["absent"] == {"torchdyn": "no_such_module not installed"}
    assert written["environment"]["threads"] == 1
    assert {"numpy", "jax", "torchdiffeq", "cpu", "python"} <= set(written["environment"])


def test_a_small_run_prints_rows_and_writes_ratios_and_a_plot(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torchdiffeq")
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(line_up.TIERS, "solve", "no such tier")
    file = tmp_path / "peers.json"
    flags = ["--fields", "lotka-volterra", "--quick", "--tiers", "eager", "solve", "--json", str(file)]
    assert main(["peers", *flags, "--plots", str(tmp_path), "--without", *OTHERS]) == 0
    printed = capsys.readouterr().out
    assert "pynode solve at rtol 1e-06: InputError" in printed
    assert "torchdiffeq odeint_adjoint" in printed
    assert (tmp_path / "peers.png").stat().st_size > 0
    written = json.loads(file.read_text())
    field = written["fields"]["lotka-volterra"]
    rows = field["gradient"]
    assert set(rows) == {
        "pynode eager",
        "pynode solve",
        "torchdiffeq odeint_adjoint",
        "torchdiffeq odeint, backprop",
    }
    assert rows["pynode solve"]["runs"] == []
    for row in field["forward"], rows:
        for run in row["pynode eager"]["runs"]:
            assert 0.0 < run["error"] < 1e-2
            assert len(run["samples"]) == 2
    assert all(value > 0.0 for value in written["ratios"].values())
    assert not any("solve over" in name for name in written["ratios"])


def test_a_tier_that_falls_back_is_refused():
    with own_tier():
        pass
    with pytest.raises(UnsupportedError, match="fell back: made up"), own_tier():
        COUNTS.fallen_back["made up"] += 1
    COUNTS.fallen_back.pop("made up")


def test_only_steady_ratios_are_watched():
    case = PROBLEMS_BY_NAME["lotka-volterra"].draw(0, True)
    steady, restless = Spread(2.0, 1.9, 2.1), Spread(2.0, 1.5, 2.5)
    found = {
        ("eager", "a"): Comparison(steady, Spread(4.0, 3.9, 4.1), "interpolated"),
        ("eager", "b"): Comparison(steady, steady, "at most"),
        ("eager", "c"): Comparison(restless, None, "never"),
    }
    assert ratios(case, "forward", found) == {
        "lotka-volterra forward: eager over a, same tolerance": 0.5,
        "lotka-volterra forward: eager over a, equal error": 0.25,
        "lotka-volterra forward: eager over b, same tolerance": 0.5,
    }


@pytest.mark.slow
def test_every_field_runs_small(capsys):
    assert main(["peers", "--quick", "--without", "julia"]) == 0
    printed = capsys.readouterr().out
    for name in PROBLEMS_BY_NAME:
        assert name in printed
