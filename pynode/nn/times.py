"""Times that are learned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Times(torch.nn.Module):
    """Times some of which are learned: ``Times((0.0, torch.nn.Parameter(torch.tensor(1.0))))``.

    :class:`pynode.nn.NeuralODE` makes one of a sequence of times with parameters among them. Parameters are called by
    their place in the sequence: ``t.1`` is the end of ``(0.0, Parameter)``.

    Parameters
    ----------
    times : sequence of float and of 0-dim torch.nn.Parameter
        Strictly monotone, and to be kept so by training: a solve raises InputError where they are not.

    Examples
    --------
    >>> end = torch.nn.Parameter(torch.tensor(1.0))
    >>> model = pynode.nn.NeuralODE(lambda t, y: y, t=pynode.nn.Times((0.0, end)))
    >>> model(torch.ones(1)).sum().backward()
    >>> round(end.grad.item(), 3)  # d exp(t) / dt at 1
    2.718
    """

    def __init__(self, times: Sequence[float | Tensor]) -> None:
        super().__init__()
        self.fixed: list[float | None] = []
        for index, time in enumerate(times):
            if isinstance(time, torch.nn.Parameter):
                self.fixed.append(None)
                self.register_parameter(str(index), time)
            else:
                self.fixed.append(float(time))

    def forward(self) -> Tensor:
        """All times (T,) in float64, connected to the parameters."""
        own = [self.get_parameter(str(i)) if time is None else None for i, time in enumerate(self.fixed)]
        device = next(self.parameters()).device
        listed = [
            torch.tensor(time, dtype=torch.float64, device=device) if x is None else x.double()
            for time, x in zip(self.fixed, own, strict=True)
        ]
        return torch.stack(listed)

    def extra_repr(self) -> str:
        return ", ".join("learned" if time is None else f"{time:g}" for time in self.fixed)
