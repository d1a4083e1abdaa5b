"""quickstart.py, odenet_mnist.py and depth_and_tolerance.py: their parts at once, whole runs under `slow`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")

from odenet_mnist import Branch, accuracy, ode_net, res_net

from pynode.demo.data import Dataset
from pynode.nn import NeuralODE

ROOT = Path(__file__).parents[2]


def images(size: int = 28, count: int = 4) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    pixels, labels = torch.randn(count, 1, size, size, generator=generator), torch.arange(count) % 10
    return Dataset("noise", pixels, labels, pixels, labels, 10)


def ran(folder: Path, script: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "examples" / script), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readmes_first_code_is_the_quickstart():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    first = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)[0]
    script = (ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8")
    assert first == script
    assert script.count("\n") <= 45


def test_parameters_are_the_reports():
    data = images()
    sizes = [sum(p.numel() for p in model.parameters()) for model in (res_net(data, 64), ode_net(data, 64))]
    assert sizes == [576_778, 208_266]  # 576k and 208k in Aghaei's tables
    assert sizes[1] <= 0.4 * sizes[0]


@pytest.mark.parametrize("size", [8, 28])
def test_both_networks_classify_images_of_both_sizes(size):
    data = images(size)
    for model in (res_net(data, 8), ode_net(data, 8, rtol=1e-2, atol=1e-2)):
        logits = model(data.train_images)
        assert logits.shape == (4, 10)
        logits.sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        assert 0 <= accuracy(model, data.test_images, data.test_labels, torch.device("cpu")) <= 100


def test_a_residual_block_adds_its_whole_branch():
    torch.manual_seed(0)
    network = res_net(images(), 8, blocks=1)
    body, y = network[1], torch.randn(2, 8, 7, 7)
    branch = body.f[0]
    assert isinstance(branch, Branch)
    torch.testing.assert_close(body(y), y + branch(torch.tensor(0.0), y))


def test_the_accuracy_is_in_per_cent_and_of_the_model_itself():
    class Known(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.one_hot(x[:, 0, 0, 0].long(), 10).float()

    pixels = torch.arange(4.0).view(4, 1, 1, 1)
    assert accuracy(Known(), pixels, torch.tensor([0, 1, 2, 0]), torch.device("cpu")) == 75.0
    model = ode_net(images(8), 8, rtol=1e-2, atol=1e-2)
    accuracy(model, pixels.expand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]), torch.device("cpu"))
    assert isinstance(model, NeuralODE)
    assert "compile" not in model.options


@pytest.mark.slow
def test_quickstart_fits_the_spiral(tmp_path):
    printed = ran(tmp_path, "quickstart.py")
    losses = [float(found) for found in re.findall(r"loss ([\d.]+)", printed)]
    assert len(losses) == 5
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.slow
def test_odenet_mnist_prints_a_row_for_every_way_to_a_gradient(tmp_path):
    small = ("--quick", "--epochs", "1", "--train", "256", "--test", "100", "--channels", "8", "--device", "cpu")
    # Two iterations: kinks of ReLU take apart what rounding has made different.
    printed = ran(tmp_path, "odenet_mnist.py", *small, "--batch", "128", "--plot", "found.png")
    rows = {row["name"]: row for row in json.loads((tmp_path / "found.json").read_text())["rows"]}
    assert all(name in printed for name in rows)
    assert len(rows) == 6
    assert (tmp_path / "found.png").stat().st_size > 0
    direct, exact = rows["ODE-net, DirectAdjoint"], rows["ODE-net, CheckpointedAdjoint"]
    # One and the same gradient from one and the same seed: the trainings take the same steps, to rounding.
    assert abs(direct["test"] - exact["test"]) <= 2
    assert abs(direct["nfe"] - exact["nfe"]) <= 6
    assert exact["megabytes"] < direct["megabytes"]
    assert all(row["backward_nvjp"] > 0 for name, row in rows.items() if name != "ResNet")


@pytest.mark.slow
def test_depth_and_tolerance_prints_the_figures_numbers(tmp_path):
    small = ("--quick", "--epochs", "2", "--train", "512", "--test", "100", "--channels", "8", "--device", "cpu")
    printed = ran(tmp_path, "depth_and_tolerance.py", *small, "--plot", "found.png")
    found = json.loads((tmp_path / "found.json").read_text())
    assert "products / forward" in printed
    assert (tmp_path / "found.png").stat().st_size > 0
    assert len(found["history"]) == 2
    errors, evaluations = ([row[key] for row in found["tests"]] for key in ("error", "nfe"))
    assert evaluations == sorted(evaluations)
    assert errors[-1] < errors[0]
    assert errors[-1] < 1e-4  # asked for 1e-6
    assert len(found["gradients"]) == 16
    exact = [row for row in found["gradients"] if row["way"] == "CheckpointedAdjoint"]
    assert all(row["products"] <= row["forward"] for row in exact)  # rejected steps are not pulled back through
