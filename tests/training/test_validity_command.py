"""``pynode validity``: its models, its data, its exit statuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pynode.cli import main

MODULE = """
import torch, pynode
class Decay(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(2.0))
    def forward(self, t, y): return -self.rate * y
def make(): return pynode.nn.NeuralODE(Decay(), algorithm=pynode.Euler(steps=1))
fine = pynode.nn.NeuralODE(Decay(), algorithm=pynode.Euler(steps=16))
x = torch.tensor([[-1.0], [-0.5], [0.3], [0.8]])
batches = [(x, x > 0), (2 * x, x > 0)]
def data(): return batches
def metric(output, target): return ((output > 0) == target).float().mean()
number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch, request):
    name = "judged_" + "".join(c if c.isalnum() else "_" for c in request.node.name)
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return name


def test_exit_status_tells_a_flow_from_a_discretisation(module, tmp_path, capsys):
    numbers, picture = tmp_path / "a.json", tmp_path / "a.png"
    argv = ["validity", f"{module}:make", "--data", f"{module}:data", "--json", str(numbers), "--plot", str(picture)]
    assert main(argv) == 1
    assert "discretisation: " in capsys.readouterr().out
    assert json.loads(numbers.read_text())["samples"] == 8
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["validity", f"{module}:fine", "--data", f"{module}:batches", "--metric", f"{module}:metric"]) == 0
    assert "flow: " in capsys.readouterr().out


def test_data_and_weights_from_files(module, tmp_path, capsys):
    x = np.array([[-1.0], [1.0]] * 5, dtype=np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=x[:, 0] > 0)
    torch.save((torch.tensor(x), torch.tensor(x[:, 0] > 0)), tmp_path / "d.pt")
    torch.save({"f.rate": torch.tensor(0.5)}, tmp_path / "w.pt")
    for data in ("d.npz", "d.pt"):
        # At rate 0.5 one Euler step keeps the sign: another model than that of the module.
        argv = ["validity", f"{module}:make", "--data", data, "--batch", "3", "--weights", "w.pt"]
        assert main([*argv, "--json", "a.json", "--solvers", "RK4", "--factors", "1,2"]) == 0
        content = json.loads((tmp_path / "a.json").read_text())
        assert content["samples"] == 10
        assert {row["solver"] for row in content["rows"]} == {"Euler", "RK4"}
    capsys.readouterr()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["M:number", "--data", "M:data"], "is a int"),
        (["M:missing", "--data", "M:data"], "has no 'missing'"),
        (["absent_module:x", "--data", "M:data"], "cannot import"),
        (["M:make", "--data", "M:number"], "data is a int"),
        (["M:make", "--data", "none.npz"], "cannot read none.npz"),
        (["M:make", "--data", "M:data", "--weights", "none.pt"], "cannot load none.pt"),
        (["M:make", "--data", "M:data", "--json", "no/a.json"], "cannot write"),
    ],
)
def test_what_is_missing_is_named(module, argv, message, capsys):
    assert main(["validity", *[part.replace("M:", f"{module}:") for part in argv]]) == 2
    assert message in capsys.readouterr().err
