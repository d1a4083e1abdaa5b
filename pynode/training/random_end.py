"""A random end time (STEER)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pynode.errors import InputError, explain
from pynode.problem import check_times


class RandomEnd(torch.nn.Module):
    """Times whose last one is drawn anew for every training solve, ``t_end ~ U(t_end - b, t_end + b)`` (STEER: Ghosh et
    al. 2020, "STEER: simple temporal regularization for neural ODEs").

    For ``t=`` of :class:`pynode.nn.NeuralODE` and :class:`pynode.nn.CNF`. In evaluation mode (``model.eval()``) the
    times are what they are. One draw serves the whole batch, as in the paper.

    Parameters
    ----------
    t : sequence of float or tensor
        Strictly monotone times.
    half_width : float
        ``b``; below the last interval of ``t``. Half that interval by default (0.5 on the unit interval, from the
        paper).
    generator : torch.Generator, optional
        On the CPU; torch's own otherwise.

    Examples
    --------
    >>> times = pynode.training.RandomEnd((0.0, 1.0), half_width=0.25)
    >>> 0.75 <= times()[-1].item() <= 1.25, times.eval()()
    (True, tensor([0., 1.], dtype=torch.float64))
    """

    def __init__(
        self,
        t: Sequence[float] | Tensor = (0.0, 1.0),
        half_width: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _, times = check_times("t", t)
        if len(times) < 2:
            raise InputError(explain("RandomEnd got one time", "at least a start and an end time", "give both"))
        interval = abs(times[-1] - times[-2])
        self.half_width = interval / 2 if half_width is None else half_width
        if not 0 <= self.half_width < interval:
            raise InputError(
                explain(
                    f"RandomEnd(half_width={half_width})",
                    f"a number >= 0 below the last interval of t, {interval:g}",
                    "lower it, or drop it",
                )
            )
        self.times = times  # no buffer, which would be rounded with the parameters
        self.generator = generator

    def forward(self) -> Tensor:
        """Times (T,) in float64."""
        times = torch.tensor(self.times, dtype=torch.float64)
        if self.training:
            times[-1] += (2 * torch.rand((), generator=self.generator, dtype=torch.float64) - 1) * self.half_width
        return times

    def extra_repr(self) -> str:
        return f"{self.times}, half_width={self.half_width:g}"
