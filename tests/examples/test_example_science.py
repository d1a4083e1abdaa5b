"""The scientific examples: what can be checked in a moment, and their tables from the shortest runs."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import cnf
import conditional_cnf
import hamiltonian
import pde_adjoint
import pytest
import seminorm
import stiff_chemistry
import torch

import pynode
import pynode.backends
from pynode.problems import PROBLEMS

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(folder: Path, script: str, *options: str, status: int = 0, timeout: float = 600) -> str:
    """What a script prints on stdout; its picture has to be there if it succeeds."""
    picture = folder / "picture.png"
    found = subprocess.run(
        [sys.executable, EXAMPLES / f"{script}.py", "--quick", "--plot", picture, *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert found.returncode == status, found.stderr
    if status == 0:
        assert picture.stat().st_size > 1000
        return found.stdout
    return found.stderr


def test_robertson_with_a_rate_law_keeps_its_matter():
    y = torch.rand(5, 3, dtype=torch.float64)
    law = stiff_chemistry.RateLaw()
    assert (law(y) > 0).all()
    assert law(y * torch.tensor([1.0, 0.0, 1.0])).eq(0).all()
    change = stiff_chemistry.known(torch.tensor(0.0), y, law(y)).sum(-1)
    assert change.abs().max() < 1e-9 * stiff_chemistry.known(torch.tensor(0.0), y, law(y)).abs().max()


def test_robertson_with_the_true_law_is_robertson():
    field = PROBLEMS["robertson"].build(dtype=torch.float64).field
    y = torch.rand(3, dtype=torch.float64)
    found = stiff_chemistry.known(torch.tensor(0.0), y, stiff_chemistry.truth(y))
    assert torch.allclose(found, field(torch.tensor(0.0), y), rtol=1e-12)


def test_brusselator_is_the_libraries():
    built = PROBLEMS["brusselator-2d"].build(size=6, dtype=torch.float64)
    y, t = pde_adjoint.start(6), torch.tensor(0.0)
    assert torch.allclose(y.permute(1, 2, 0), built.y0)
    found = pde_adjoint.Brusselator(**pde_adjoint.TRUTH)(t, y)
    assert torch.allclose(found.permute(1, 2, 0), built.field(t, built.y0), rtol=1e-10)


def integral(density) -> float:
    """Over the square that holds all but a negligible part."""
    side = torch.linspace(-6, 6, 241, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side).float()
    return density(grid).double().exp().sum().item() * (side[1] - side[0]).item() ** 2


@pytest.mark.parametrize("name", cnf.TARGETS)
def test_targets_are_densities(name: str):
    assert integral(cnf.TARGETS[name].log_prob) == pytest.approx(1.0, abs=1e-4)


def test_conditional_target_is_a_density_of_its_points():
    angle = torch.full((4000, 1), 0.7)
    assert integral(lambda x: conditional_cnf.true_log_prob(x, torch.full((len(x), 1), 0.7))) == pytest.approx(
        1.0, abs=1e-4
    )
    x = conditional_cnf.draw_points(angle, torch.Generator().manual_seed(0))
    # Along the bar the variance is radius**2 + width**2, with a relative error of a mean of 4000 squares; 4 sigma.
    along = x @ torch.tensor([math.cos(0.7), math.sin(0.7)])
    expected = conditional_cnf.RADIUS**2 + conditional_cnf.WIDTH**2
    assert along.square().mean().item() == pytest.approx(expected, rel=4 * math.sqrt(2 / 4000))


def test_pendulum_keeps_its_energy():
    q, p = torch.rand(2, 5, dtype=torch.float64).requires_grad_().unbind()
    to_q, to_p = torch.autograd.grad(hamiltonian.energy(q, p).sum(), (q, p))
    dq, dp = hamiltonian.pendulum(torch.tensor(0.0), (q, p))
    assert (to_q * dq + to_p * dp).abs().max() < 1e-14


@pytest.mark.parametrize("name", seminorm.MODELS)
def test_a_pair_counts_backward_evaluations(name: str):
    model = seminorm.MODELS[name](0)
    sensealg = pynode.BacksolveAdjoint(norm="seminorm")
    found, stats, _ = seminorm.gradient(model, algorithm=pynode.DP5(), rtol=1e-3, atol=1e-3, sensealg=sensealg)
    assert [g.shape for g in found] == [p.shape for p in model.parameters]
    assert stats.backward.nfe > 0
    assert any(g.abs().max() > 0 for g in found)


@pytest.mark.slow
def test_stiff_chemistry(tmp_path: Path):
    printed = run(tmp_path, "stiff_chemistry", "--steps", "2")
    for method in stiff_chemistry.METHODS:
        (row,) = re.findall(rf"^{method} +(\S+) +(\S+) ", printed, re.M)
        assert float(row[1]) < float(row[0])
    assert "Tsit5 with 5000 steps reached" in printed
    assert "max_steps" in printed


@pytest.mark.slow
def test_pde_adjoint(tmp_path: Path):
    printed = run(tmp_path, "pde_adjoint", "--size", "8", "--steps", "4")
    for name in pde_adjoint.SENSEALGS:
        assert f"\n{name}" in printed
    rows = re.findall(r"^(\w+)Adjoint\(\S*\) +[\d.]+ .* (\S+) +(\S+)$", printed, re.M)
    assert len(rows) >= 5
    assert max(float(error) for _, error, _ in rows) < 1e-2
    # The discrete gradient at a uniform state may be anything: that is what the column shows.
    assert max(float(error) for name, _, error in rows if name not in {"Checkpointed", "Direct"}) < 1e-2
    guess, _, found = (float(x) for x in re.findall(r"relative error: (\S+) .*?, (\S+) .*?, (\S+) of what", printed)[0])
    assert found < guess


@pytest.mark.slow
def test_ddp(tmp_path: Path):
    printed = run(tmp_path, "ddp", "--steps", "3")
    gaps = dict(re.findall(r"^(fixed steps|independent rows|joint adaptive steps) +(\S+)$", printed, re.M))
    assert float(gaps["fixed steps"]) < 1e-12
    assert float(gaps["independent rows"]) < 1e-12
    assert float(gaps["joint adaptive steps"]) < 1e-3
    assert "equal bit by bit" in printed


@pytest.mark.slow
def test_seminorm(tmp_path: Path):
    printed = run(tmp_path, "seminorm", "--steps", "1")
    for name in seminorm.MODELS:
        assert len(re.findall(rf"^{name} +0\.\d+|^{name} +1e-05", printed, re.M)) == len(seminorm.TOLERANCES)
    assert re.search(r"; all \d+%", printed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "rows"), [("cnf", list(cnf.TARGETS)), ("conditional_cnf", ["truth", "conditional"])]
)
def test_flows(tmp_path: Path, script: str, rows: list[str]):
    printed = run(tmp_path, script, "--steps", "4")
    for row in rows:
        assert re.search(rf"^{row}.* \d+\.\d+", printed, re.M)


@pytest.mark.slow
def test_hamiltonian(tmp_path: Path):
    printed = run(tmp_path, "hamiltonian", "--periods", "20", "--steps", "5")
    assert "Yoshida6" in printed
    assert "HamiltonianODE, Verlet" in printed


@pytest.mark.slow
def test_crosscheck_says_how_to_install_julia(tmp_path: Path):
    printed = run(tmp_path, "crosscheck_julia")
    error = float(re.findall(r"^torch CheckpointedAdjoint +\S+ +(\S+)", printed, re.M)[0])
    assert error < 1e-4
    assert "julia GaussAdjoint" in printed or "pynode julia setup" in printed


@pytest.mark.slow
def test_train_in_julia_says_how_to_install_julia(tmp_path: Path):
    if pynode.backends.backend_from_name("julia").absent() is None:
        pytest.skip("Julia is here")
    assert "pynode julia setup --with flux" in run(tmp_path, "train_in_julia", status=2)


@pytest.mark.slow
@pytest.mark.julia
def test_train_in_julia(tmp_path: Path):
    lacking = pynode.backends.backend_from_name("julia").absent()
    if lacking is not None:
        pytest.skip(lacking)
    # Compilation takes two minutes of a core to itself.
    printed = run(tmp_path, "train_in_julia", "--steps", "2", timeout=1800)
    there, back, slope = (float(x) for x in re.findall(r"(\d\.\de[-+]\d+)$", printed, re.M))
    # Either side solves at 1e-7; losses are of order one, and a thousandfold is room for the solve's sensitivity.
    assert max(there, back, slope) < 1e-4
    assert re.search(r"^Julia: .* are the 2 steps", printed, re.M)
