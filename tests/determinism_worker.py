"""Run by test_determinism.py: solves and trains, and prints a digest of every result's bits as JSON.

``python determinism_worker.py THREADS``
"""

from __future__ import annotations

import hashlib
import json
import sys

import torch

import pynode


def digest(*tensors: torch.Tensor) -> str:
    found = hashlib.sha256()
    for x in tensors:
        found.update(x.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def net() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))


def trained(rows: int = 8, **options: object) -> str:
    """Five iterations of Adam."""
    model = net()
    y0, optimizer = torch.randn(rows, 4), torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        sol = pynode.solve(lambda t, y: model(y), y0, [0.0, 0.5, 1.0], **options)
        sol.ys.square().sum().backward()
        optimizer.step()
    return digest(sol.ys, *model.parameters())


def flow() -> str:
    """A continuous normalizing flow whose trace is estimated with random directions."""
    model = net()
    cnf = pynode.nn.CNF(lambda t, y: model(y), 4, trace=pynode.nn.HutchinsonTrace())
    torch.manual_seed(1)
    log_prob = cnf.log_prob(torch.randn(16, 4))
    return digest(log_prob, *torch.autograd.grad(log_prob.sum(), list(model.parameters())))


def large() -> str:
    """More elements than torch gives to one thread, field and loss elementwise."""
    torch.manual_seed(2)
    y0 = torch.randn(200_000, requires_grad=True)
    sol = pynode.solve(lambda t, y: torch.sin(3 * y) * torch.cos(t), y0, [0.0, 1.0], rtol=1e-6)
    return digest(sol.ys, *torch.autograd.grad(sol.ys[-1].sum(), y0))


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    found = {
        "checkpointed": trained(),
        "direct": trained(sensealg=pynode.DirectAdjoint()),
        "backsolve": trained(sensealg=pynode.BacksolveAdjoint()),
        "gauss": trained(sensealg=pynode.GaussAdjoint()),
        "reversible": trained(algorithm=pynode.ReversibleHeun(), rtol=1e-3),
        "implicit": trained(algorithm=pynode.KenCarp4(), rows=2),
        "rows": trained(batching="independent"),
        "rk4": trained(algorithm=pynode.RK4(steps=8)),
        "C++": trained(compile="solve"),
        "flow": flow(),
        "large": large(),
    }
    print(json.dumps(found))
