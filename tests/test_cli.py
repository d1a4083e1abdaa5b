"""The command: its subcommands, its exit statuses, and one real, short demo."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

import pynode
from pynode.cli import COMMANDS, main
from pynode.demo.command import sensealg_from_name
from pynode.demo.gradient_check import GradientCheck
from pynode.errors import InputError

SHORT = ["demo", "--epochs", "1", "--samples", "128", "--channels", "8"]


@pytest.fixture(autouse=True)
def _same_threads_afterwards():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"pynode {pynode.__version__}\n"


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize("argv", [[], ["train"], ["--nonsense"]])
def test_what_is_no_command_ends_with_status_2(argv, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    assert "usage: pynode" in capsys.readouterr().err


def test_a_command_has_its_own_help(capsys):
    with pytest.raises(SystemExit) as end:
        main(["demo", "--help"])
    assert end.value.code == 0
    assert "usage: pynode demo" in capsys.readouterr().out


def test_bench_gets_the_rest_of_the_arguments(monkeypatch):
    got = []
    module = types.ModuleType("pynode.bench.__main__")
    module.main = lambda argv: got.append(argv) or 3
    monkeypatch.setitem(sys.modules, "pynode.bench.__main__", module)
    assert main(["bench", "overhead", "--quick", "--help"]) == 3
    assert got == [["overhead", "--quick", "--help"]]


def test_an_interrupt_ends_with_status_130(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("pynode.demo.command.main", interrupted)
    assert main(["demo"]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "module", "package"),
    [
        (["demo"], "rich", "rich"),
        (["demo"], "sklearn", "scikit-learn"),
        (["demo"], "scipy", "scipy"),
        (["demo"], "matplotlib", "matplotlib"),
        (["demo", "--data", "."], "scipy", "scipy"),
    ],
)
def test_a_missing_package_is_one_line_with_the_remedy(argv, module, package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert package in error
    assert "pip install 'pynode[demo]'" in error


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data", "/nowhere"], "/nowhere is not a directory"),
        (["--device", "abacus"], "--device abacus is not a device"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--device", "meta"], "not supported by the demo"),
        (["--algorithm", "Tsit6"], "Tsit5"),
        (["--steps", "3"], "--steps 3 with the adaptive Tsit5"),
        (["--sensealg", "Backsolv"], "BacksolveAdjoint"),
        (["--output", "/nowhere/a.png"], "cannot write /nowhere/a.png"),
        (["--output", "a.xyz"], "a.xyz"),
        (["--json", "/nowhere/a.json"], "cannot write /nowhere/a.json"),
    ],
)
def test_what_cannot_work_is_said_before_the_training(argv, message, capsys):
    assert main(["demo", *argv]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Remedy:" in error


@pytest.mark.parametrize("argv", [["--epochs", "0"], ["--rtol", "-1"], ["--batch-size", "two"], ["--threads", "0"]])
def test_numbers_out_of_range_end_with_status_2(argv):
    with pytest.raises(SystemExit) as end:
        main(["demo", *argv])
    assert end.value.code == 2


@pytest.mark.parametrize("name", ["BacksolveAdjoint", "backsolve", "backsolveadjoint"])
def test_sensealg_names(name):
    assert sensealg_from_name(name) == pynode.BacksolveAdjoint()


def test_unknown_sensealg_lists_the_known_ones():
    with pytest.raises(InputError, match=r"CheckpointedAdjoint.*did you mean DirectAdjoint"):
        sensealg_from_name("DirectAdjont")


def test_a_short_demo_trains_checks_and_reports(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture, numbers = tmp_path / "demo.png", tmp_path / "demo.json"
    assert main([*SHORT, "--output", str(picture), "--json", str(numbers)]) == 0
    out = capsys.readouterr().out
    assert "PASS" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    content = json.loads(numbers.read_text())
    ode, res = content["results"]
    assert (res["forward_nfe"], res["backward_nvjp"]) == (6, 6)
    assert ode["forward_nfe"] >= 7
    assert ode["backward_nvjp"] >= 6
    assert ode["parameters"] < res["parameters"]
    for result in (ode, res):
        assert 0 <= result["test_accuracy"] <= 1
        assert result["seconds_per_epoch"] > 0
        assert result["peak_memory_bytes"] > 100_000
    assert content["gradient_check"]["passed"]
    assert content["gradient_check"]["parameters"] < 1e-6


def test_a_failed_gradient_check_ends_with_status_1(monkeypatch, capsys):
    monkeypatch.setattr("pynode.demo.gradient_check.BOUND", 1e-15)
    assert main([*SHORT, "--no-picture"]) == 1
    assert "FAIL" in capsys.readouterr().out


@pytest.fixture
def _training_only(monkeypatch):
    """Without the parts that other tests look at."""
    check = GradientCheck(4, "Tsit5", "DirectAdjoint", 0.0, 0.0, 0.0, 0.0, 0.0)
    monkeypatch.setattr("pynode.demo.command.check_gradient", lambda *args, **kwargs: check)
    monkeypatch.setattr("pynode.demo.command.peak_memory", lambda work, device: 0)


@pytest.mark.usefixtures("_training_only")
def test_the_seed_decides_the_result(tmp_path):
    runs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        path = tmp_path / f"{name}.json"
        assert main([*SHORT, "--no-picture", "--json", str(path), "--seed", str(seed)]) == 0
        runs.append([r["epochs"][0]["loss"] for r in json.loads(path.read_text())["results"]])
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.usefixtures("_training_only")
def test_a_fixed_step_demo_uses_its_steps(tmp_path):
    path = tmp_path / "demo.json"
    argv = [*SHORT, "--no-picture", "--json", str(path), "--algorithm", "rk4", "--steps", "2", "--sensealg", "direct"]
    assert main(argv) == 0
    assert json.loads(path.read_text())["results"][0]["forward_nfe"] == pytest.approx(8, abs=1)


@pytest.mark.usefixtures("_training_only")
def test_idx_files_are_trained_on(tmp_path, capsys):
    write_idx_files(tmp_path / "MNIST" / "raw")
    path = tmp_path / "demo.json"
    argv = ["demo", "--data", str(tmp_path), "--epochs", "1", "--channels", "8", "--threads", "1", "--json", str(path)]
    assert main([*argv, "--output", str(tmp_path / "demo.pdf")]) == 0
    assert json.loads(path.read_text())["data"] == "MNIST (28 x 28)"
    assert (tmp_path / "demo.pdf").read_bytes().startswith(b"%PDF")
    assert "40 training and 8 test images" in " ".join(capsys.readouterr().out.split())


def write_idx_files(folder):
    """MNIST's four files, gzipped, with 40 + 8 images of noise."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 8)):
        arrays = {
            "images-idx3-ubyte": random.integers(0, 256, (count, 28, 28), np.uint8),
            "labels-idx1-ubyte": random.integers(0, 10, count, np.uint8),
        }
        for name, array in arrays.items():
            header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
            (folder / f"{part}-{name}.gz").write_bytes(gzip.compress(header + array.tobytes()))


def test_importing_pynode_imports_none_of_the_optional_packages():
    code = (
        "import sys, pynode, pynode.cli, pynode.plotting\n"
        "print([m for m in ('rich', 'matplotlib', 'sklearn', 'scipy', 'torchdiffeq', 'jax') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_python_m_pynode_is_the_command():
    ran = subprocess.run([sys.executable, "-m", "pynode", "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout == f"pynode {pynode.__version__}\n"
