"""The same numbers on a CUDA device as on the CPU (``python -m pytest -m cuda``)."""

from __future__ import annotations

import pytest
import torch

import pynode

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

SENSEALGS = [
    pynode.CheckpointedAdjoint(),
    pynode.CheckpointedAdjoint(checkpoints=3),
    pynode.DirectAdjoint(),
    pynode.BacksolveAdjoint(),
]


def _gradients(device: str, algorithm: str, sensealg: pynode.SensitivityAlgorithm) -> list[torch.Tensor]:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double().to(device)
    y0 = torch.randn(4, 3, dtype=torch.float64).to(device).requires_grad_()
    ts = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64).to(device).requires_grad_()
    sol = pynode.solve(lambda t, y: net(y) * torch.cos(t), y0, ts, algorithm=algorithm, rtol=1e-9, atol=1e-10, dt0=0.1,
                       sensealg=sensealg)  # fmt: skip
    assert sol.ys.device == y0.device
    gradients = torch.autograd.grad(sol.ys.pow(2).sum(), [y0, ts, *net.parameters()])
    return [sol.ys.detach().cpu(), *(g.cpu() for g in gradients)]


@pytest.mark.parametrize("algorithm", ["Tsit5", "DP8", "Vern7", "RK4"])
@pytest.mark.parametrize("sensealg", SENSEALGS, ids=repr)
def test_cuda_agrees_with_the_cpu(algorithm: str, sensealg: pynode.SensitivityAlgorithm) -> None:
    for a, b in zip(_gradients("cpu", algorithm, sensealg), _gradients("cuda", algorithm, sensealg), strict=True):
        # The step sizes follow an error estimate that differs by rounding, far below the tolerance of 1e-9.
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
