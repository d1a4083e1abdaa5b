"""examples/anode.py and dissecting.py: their data, the models' sizes, and their tables from short runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import anode
import dissecting
import fitting
import pytest
import torch
from torch import nn

from pynode.demo.data import Dataset

EXAMPLES = Path(__file__).parents[2] / "examples"


def images(channels: int, side: int) -> Dataset:
    """Each label is a square of its own brightness."""
    labels = torch.arange(20) % 10
    x = labels.float().view(-1, 1, 1, 1).expand(-1, channels, side, side)
    return Dataset("squares", x, labels, x, labels, 10)


def test_annuli_are_where_the_docstring_says():
    points, labels = anode.annuli(1000, torch.Generator().manual_seed(0))
    radius = points.norm(dim=1)
    assert (labels == 1).sum() == 500
    assert radius[labels[:, 0] < 0].max() < 0.5
    assert radius[labels[:, 0] > 0].min() >= 1
    assert radius.max() < 1.5
    # Uniform in the area: a quarter of a disc is within half its radius.
    assert (radius[:500] < 0.25).float().mean() == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 500) ** 0.5)


def test_averages_over_whole_squares():
    data = fitting.averaged(images(3, 28), 8)
    assert data.train_images.shape == (20, 3, 9, 9)
    assert torch.allclose(data.train_images[:, 0, 0, 0], data.train_labels.float(), atol=1e-6)
    assert fitting.averaged(images(1, 8), 8).train_images.shape == (20, 1, 8, 8)


@pytest.mark.parametrize("channels", [1, 3])
def test_models_of_images_are_of_about_the_same_size(channels: int):
    data = images(channels, 8)
    models = dissecting.image_models(data, 5, {})
    budget = fitting.parameters(models["NODE"](24))
    for name, make in models.items():
        filters = fitting.within(make, budget)
        size = fitting.parameters(make(filters))
        # Within what one more filter would add.
        assert size <= budget < fitting.parameters(make(filters + 1)), name
        assert size > 0.85 * budget, name
        assert make(filters)(data.test_images[:2]).shape == (2, 10)


def test_within_is_anodes_own_channels():
    data = images(1, 8)
    model = anode.augmented(data, 2, 4, {})
    state = model.solve(data.test_images[:3]).ys
    assert state.shape == (2, 3, 3, 8, 8)
    assert (state[0, :, 1:] == 0).all()


def test_fit_counts_what_an_epoch_cost_and_learns():
    torch.manual_seed(0)
    run = anode.fit_toy("flip", anode.flip(1), 0, 3)
    assert len(run.losses) == len(run.forward) == len(run.backward) == len(run.accuracies) == 3
    assert run.losses[-1] < run.losses[0]
    assert run.forward[0] >= 8  # Tsit5: at least one step, its start, and the search for its size
    assert run.tight > run.forward[-1]
    assert run.parameters == 2 * 16 + 16 + 16 * 2 + 2


def test_a_rise_is_the_largest_between_epochs():
    run = fitting.Run(1, losses=[3.0, 1.0, 1.5, 0.5, 0.75])
    assert run.rise == 0.5
    assert fitting.Run(1, losses=[2.0, 1.0]).rise == 0.0


def test_the_signal_of_the_trackers_costs_nothing_where_it_is_followed():
    t = torch.linspace(0, 2, 9)
    assert dissecting.distance(t, dissecting.circle(t)).abs().max() == 0
    assert dissecting.distance(torch.tensor(0.0), torch.zeros(4, 2)).tolist() == [1.0] * 4
    assert torch.allclose(dissecting.circle(torch.tensor(0.25)), torch.tensor([0.0, 1.0]), atol=1e-6)


@pytest.mark.parametrize("name", ["NODE", "data control"])
def test_only_a_flow_of_the_line_keeps_the_order(name: str):
    """However it is trained the loss is at least 1 for the NODE; a field that knows the input gets below."""
    torch.manual_seed(0)
    run = anode.fit_toy("flip", dissecting.FLIPS[name](), 0, 4)
    if name == "NODE":
        # Two ends that a solver's error e takes past each other have at least (1 - e)^2; e is some tolerances of 1e-3.
        assert min(run.losses) > (1 - 5e-3) ** 2
    else:
        assert run.losses[-1] < 0.9


def test_trackers_are_fields_of_the_plane():
    for make in dissecting.TRACKERS.values():
        assert isinstance(make(), nn.Module)
        assert make()(torch.tensor(0.3), torch.zeros(5, 2)).shape == (5, 2)


def printed(script: str, folder: Path, *more: str) -> str:
    command = [sys.executable, str(EXAMPLES / script), "--quick", "--epochs", "1", "--toy-epochs", "1", "--train", "64"]
    command += ["--test", "100", "--eager", "--plot", str(folder / "picture.png"), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_anode_prints_its_tables(tmp_path: Path):
    out = printed("anode.py", tmp_path, "--p", "0", "2")
    assert len(re.findall(r"^NODE\s+\d", out, re.MULTILINE)) == 2  # flip and annuli
    for row in (
        r"NODE, 24 filters\s+\d",
        r"ANODE, p = 2, \d+ filters\s+\d",
        r"^flip",
        r"^annuli",
        r"CIFAR-10\s+NODE 53.7",
    ):
        assert re.search(row, out, re.MULTILINE), row
    assert "64 training and 100 test images of 8 x 8" in out
    if (tmp_path / "picture.png").exists():
        assert (tmp_path / "picture.png").stat().st_size > 1000


@pytest.mark.slow
def test_dissecting_prints_its_tables(tmp_path: Path):
    out = printed("dissecting.py", tmp_path, "--p", "1")
    for name in (*dissecting.FLIPS, *dissecting.ANNULI, *dissecting.TRACKERS):
        assert re.search(rf"^{re.escape(name)}\s+\d", out, re.MULTILINE), name
    for name in ("NODE", "ANODE", "IL-NODE", "2nd order"):
        assert re.search(rf"^{name}, \d+ filters\s+\d", out, re.MULTILINE), name
    assert "21.4 / 37.1" in out
