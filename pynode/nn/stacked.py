"""Piecewise constant parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pynode.errors import InputError, explain
from pynode.layout import Tree
from pynode.nn.swapped import swapped
from pynode.nn.time_layer import TimeLayer


class Stacked(TimeLayer):
    """``f(t, y) = f_i(t, y)`` for ``t_i <= t < t_(i+1)``: one module an interval (Massaroli, Poli et al. 2020).

    The field of the first module is evaluated with ``theta(t) = sum_i 1[t_i <= t < t_(i+1)] theta_i``, so that nothing
    depends on the value of ``t`` in Python. The first and the last interval reach to infinity. It jumps at
    ``d_discontinuities``, which :class:`pynode.nn.NeuralODE` names to the solver; with :func:`pynode.solve`, pass
    ``d_discontinuities=stacked.d_discontinuities``.

    Parameters
    ----------
    fields : sequence of torch.nn.Module
        Copies of one architecture, with parameters of their own and no buffers.
    ends : sequence of float, optional
        The inner ends ``t_1 < t_2 < ...``, one fewer than modules; by default they divide ``span`` equally.
    span : (float, float)

    Attributes
    ----------
    d_discontinuities : tuple of float
        The inner ends.

    Examples
    --------
    >>> fields = [torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)]
    >>> stacked = pynode.nn.Stacked([pynode.nn.TimeSequential(layer) for layer in fields])
    >>> stacked.d_discontinuities
    (0.5,)
    >>> y = torch.ones(1, 1)
    >>> torch.equal(stacked(torch.tensor(0.7), y), fields[1](y))
    True
    """

    def __init__(
        self,
        fields: Sequence[torch.nn.Module],
        ends: Sequence[float] | None = None,
        span: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        self.fields = torch.nn.ModuleList(fields)
        count = len(self.fields)
        if count < 1:
            raise InputError(explain("fields is empty", "one module for each interval", "give some"))
        forms = [{name: x.shape for name, x in field.named_parameters()} for field in self.fields]
        if any(form != forms[0] for form in forms) or next(self.buffers(), None) is not None:
            raise InputError(
                explain(
                    "the fields differ in their parameters' names or shapes, or have buffers",
                    "modules of one architecture without buffers",
                    "make them by the same expression, and take normalisation without running statistics",
                )
            )
        low, high = span
        given = [low + i / count * (high - low) for i in range(1, count)] if ends is None else [float(x) for x in ends]
        if len(given) != count - 1 or sorted(set(given)) != given:
            raise InputError(
                explain(f"ends = {given}", f"{count - 1} strictly increasing times", "give those between the intervals")
            )
        self.d_discontinuities = tuple(given)

    def forward(self, t: Tensor, y: Tree, *args: Any) -> Tree:
        """The field of the interval of ``t`` (0-dim).

        Raises
        ------
        InputError
            For times of samples, as under AdaptiveDepth.
        """
        if t.ndim:
            raise InputError(
                explain(f"t has shape {tuple(t.shape)}", "one time for all samples", "take GalerkinLinear instead")
            )
        names = [name for name, _ in self.fields[0].named_parameters()]
        each = [dict(field.named_parameters()) for field in self.fields]
        if not self.d_discontinuities:
            return self.fields[0](t, y, *args)
        above = torch.stack([t >= end for end in self.d_discontinuities]).to(t.dtype)
        one = above.new_ones(1)
        inside = torch.cat([one, above]) - torch.cat([above, 0 * one])
        chosen = {}
        for name in names:
            stacked = torch.stack([own[name] for own in each])
            chosen[name] = torch.tensordot(inside.to(stacked), stacked, dims=1)
        return swapped(self.fields[0], chosen)(t, y, *args)

    def extra_repr(self) -> str:
        return f"ends={[round(x, 6) for x in self.d_discontinuities]}"
