"""What the tests of this folder send to other processes, and solve there."""

from __future__ import annotations

from typing import Any

import torch

import pynode


def decay(t: Any, y: Any) -> Any:
    return -y


def half(t: Any, y: Any) -> Any:
    return y[0] - 0.5


def rows_half(t: Any, y: Any) -> Any:
    return y[:, 0] - 0.5


class Network(torch.nn.Module):
    """A small field, the same for the same seed."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.inner, self.outer = torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(0.5 * torch.randn(p.shape, generator=generator))

    def forward(self, t: Any, y: Any) -> Any:
        return self.outer(torch.tanh(self.inner(y)))


def states_and_gradients(field: Network, rows: int = 2, **options: Any) -> list[torch.Tensor]:
    """A solve and its gradients in the state and every parameter."""
    y0 = torch.linspace(-1.0, 1.0, 4 * rows).reshape(rows, 4).requires_grad_()
    sol = pynode.solve(field, y0, [0.0, 0.5, 1.0], **options)
    gradients = torch.autograd.grad(sol.ys.pow(2).sum(), [y0, *field.parameters()])
    return [sol.ys.detach(), *gradients]


class Trajectories(torch.utils.data.Dataset[torch.Tensor]):
    """A data set whose items are solves."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.cat([x.flatten() for x in states_and_gradients(Network(index), **self.options)])


class Failing(Trajectories):
    """A data set whose items fail."""

    def __getitem__(self, index: int) -> torch.Tensor:
        return pynode.solve(lambda t, y: y**2, torch.ones(1), [0.0, 2.0]).ys


def in_child(queue: Any, solution: Any, field: Any, options: dict[str, Any]) -> None:
    """Answers with what the child makes of what it was sent, as bytes: no memory that would have to outlive it."""
    torch.set_num_threads(1)
    found = [solution(0.25), *states_and_gradients(field, **options)]
    queue.put([x.numpy().tobytes() for x in found])


def fails(_: int) -> None:
    """Raises, in the child, a SolveError."""
    pynode.solve(lambda t, y: y**2, torch.ones(1), [0.0, 2.0])
