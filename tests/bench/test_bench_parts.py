"""The parts adjoint, scaling, gpu and all: small runs, and their figures on made-up data. Nothing here is timed."""

from __future__ import annotations

import json
import math

import pytest
import torch

import pynode
from pynode import bench
from pynode import progress as progressing
from pynode.bench import Claim, Report, Table, everything, gpu, scaling
from pynode.bench.__main__ import EXPERIMENTS, main
from pynode.bench.adjoint import experiment
from pynode.bench.adjoint.cases import CASES
from pynode.bench.adjoint.ways import ways
from pynode.bench.contestants import Pynode
from pynode.bench.stages import stages
from pynode.errors import InputError

OTHERS = ["torchode", "torchdyn", "diffrax", "julia"]


def test_the_large_cases_are_those_that_were_promised():
    sizes = {name: make[0]() for name, make in CASES.items()}
    assert sizes["brusselator-32"].y0.numel() == 2048
    assert sizes["brusselator-64"].y0.numel() == 8192
    assert 1e6 <= sum(p.numel() for p in sizes["parameters"].field.parameters()) < 1.1e6
    assert sizes["batch"].y0.shape[0] == 4096


@pytest.mark.slow
def test_the_long_horizon_takes_ten_thousand_steps():
    accepted, _ = Pynode(algorithm=pynode.DP5()).steps(CASES["long-horizon"][0]())
    assert 9_500 <= accepted <= 10_500


def test_adjoint_on_a_small_case(tmp_path, capsys):
    file = tmp_path / "adjoint.json"
    assert main(["adjoint", "--quick", "--cases", "parameters", "--without", *OTHERS, "--json", str(file)]) == 0
    assert "torch eager GaussAdjoint" in capsys.readouterr().out
    case = json.loads(file.read_text())["cases"]["parameters"]
    # The oracle of the gradient is itself held against finite differences and another library.
    assert case["reference"]["solution"] < 1e-10
    assert case["reference"]["finite_difference"] < 1e-8
    for name, row in case["rows"].items():
        assert row["error"] < 1e-3, name
        assert row["peak_bytes"] > 0
        assert len(row["samples"]) == 1


def test_a_refused_gradient_is_named():
    # A parabolic problem cannot be solved backward.
    case, report = CASES["brusselator-64"][1](), Report([], [])
    kept = ("torch eager CheckpointedAdjoint", "torch eager BacksolveAdjoint")
    found = [way for way in ways(case, ["eager"], ["torchdiffeq", *OTHERS]) if way.contestant.name in kept]
    with stages("test", 3) as progress:
        rows = experiment.measure(case, found, 1, report, progress)
    assert rows["torch eager BacksolveAdjoint"]["refused"].startswith("GradientError")
    assert "median" not in rows["torch eager BacksolveAdjoint"]
    assert rows["torch eager CheckpointedAdjoint"]["error"] < 1e-3
    assert any("GradientError" in note for note in report.notes)
    assert [row[1] == "refused" for row in report.tables[0].rows] == [name != kept[0] for name in rows]


@pytest.mark.slow
def test_adjoint_of_every_case(capsys):
    assert main(["adjoint", "--quick", "--without", "julia"]) == 0


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_exponents_are_those_of_the_upper_part(power):
    sizes = [10**k for k in range(6)]
    seconds = [max(1.0, 2.0 * (n / 1000) ** power) for n in sizes]
    assert scaling.upper_exponent(sizes, seconds) == pytest.approx(power)
    assert scaling.upper_exponent(sizes, [1.0] * 6) is None


@pytest.mark.parametrize("size", scaling.SIZES["parameters"])
def test_networks_have_about_as_many_parameters_as_asked(size):
    field = scaling.MAKE["parameters"](size).field
    assert sum(p.numel() for p in field.parameters()) == pytest.approx(size, rel=0.3)


def test_scaling_runs_small(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    file = tmp_path / "scaling.json"
    assert main(["scaling", "--quick", "--json", str(file), "--plots", str(tmp_path)]) == 0
    axes = json.loads(file.read_text())["axes"]
    assert set(axes) == set(scaling.SIZES)
    for axis, rows in axes.items():
        assert rows["sizes"] == list(scaling.QUICK[axis])
        assert len(rows["gradient"]) == len(rows["nfe"]) == len(rows["sizes"])
    assert (tmp_path / "scaling.png").stat().st_size > 0
    assert "time against parameters" in capsys.readouterr().out


def test_without_cuda_the_gpus_part_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["gpu"]) == 1
    assert "--device cpu" in capsys.readouterr().err
    with pytest.raises(InputError, match="nonsense"):
        gpu.device_of("nonsense")


def test_the_gpus_part_runs_small_on_the_cpu(tmp_path, capsys):
    pytest.importorskip("torchdiffeq")
    file = tmp_path / "gpu.json"
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    assert main(["gpu", "--device", "cpu", "--json", str(file)]) == 0
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before
    written = json.loads(file.read_text())
    assert (written["device"], written["tf32"], written["small"]) == ("cpu", False, True)
    for rows in written["fields"].values():
        assert {"pynode eager", gpu.PEER} <= set(rows)
        assert rows["pynode eager"]["busy"] > 0.0
    assert "TF32 off" in capsys.readouterr().out


def test_training_steps_of_all_contestants_train_alike():
    pytest.importorskip("torchdiffeq")
    device = torch.device("cpu")
    for case in gpu.cases(small=True):
        report = Report([], [])
        steps = gpu.contestants(case, device, ["eager"], report)
        assert report.notes == []
        # The first step is taken on warming up: these are losses after one and after two updates.
        losses = {name: [float(step()), float(step())] for name, step in steps.items()}
        for name, (first, second) in losses.items():
            assert second < first, name
            assert first == pytest.approx(losses["pynode eager"][0], rel=1e-3), name


def test_the_parts_are_those_that_were_promised():
    promised = ["overhead", "gradients", "solvers", "adjoint", "memory", "scaling", "gpu", "peers", "all"]
    assert all(name in EXPERIMENTS for name in promised)
    assert set(everything.PARTS) == set(promised) - {"all"}


def test_all_gathers_parts_and_fails_with_any_of_them(tmp_path, monkeypatch, capsys):
    def fail(options):
        raise InputError("no such thing")

    good = Report([], [Claim("it is fast", 2.0, True)], data={"x": math.inf}, ratios={"a over b": 0.5})
    monkeypatch.setattr(scaling, "run", lambda options: good)
    file = tmp_path / "all.json"
    assert main(["all", "--quick", "--parts", "scaling", "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    assert written["parts"]["scaling"] == {"x": None, "ratios": {"a over b": 0.5}}
    assert written["ratios"] == {"scaling: a over b": 0.5}
    assert [claim["text"] for claim in written["claims"]] == ["it is fast"]
    monkeypatch.setattr(gpu, "run", fail)
    assert main(["all", "--quick", "--parts", "gpu", "scaling", "--json", str(file)]) == 1
    assert "FAILED  gpu: no such thing" in capsys.readouterr().out
    assert json.loads(file.read_text())["parts"].keys() == {"scaling"}


def test_every_part_can_be_asked_for_by_all():
    import importlib

    for module in everything.PARTS.values():
        assert callable(importlib.import_module(module).run)


@pytest.mark.slow
def test_all_runs_small(tmp_path, capsys):
    file = tmp_path / "all.json"
    assert main(["all", "--quick", "--json", str(file)]) == 0
    assert set(json.loads(file.read_text())["parts"]) == set(everything.PARTS)


def test_without_rich_there_is_plain_text(monkeypatch, capsys):
    def absent(name):
        return None

    monkeypatch.setattr(bench.importlib.util, "find_spec", absent)
    Report([Table("title", ("", "ms"), [("a", "1.0")])], []).print()
    assert capsys.readouterr().out.splitlines()[0] == "title"
    assert isinstance(progressing.displayed("peers"), progressing.Line)
