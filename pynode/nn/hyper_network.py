"""Parameters that another network computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pynode.errors import InputError, explain
from pynode.nn.swapped import swapped
from pynode.nn.time_layer import TimeLayer
from pynode.nn.trees import check_callable


class HyperNetwork(TimeLayer):
    """``f(t, y; theta + h(t))``: a network ``h`` of the time produces the field's parameters (Ha, Dai and Le 2016;
    Chen et al. 2018 for continuous normalising flows).

    ``theta``, the field's own parameters, is learned as ``h``'s constant term, so that a field starts as it was
    initialised where ``h`` starts at zero.

    Parameters
    ----------
    f : torch.nn.Module
        ``f(t, y, *args)``.
    h : torch.nn.Module or callable
        Takes the time (1,) and returns all of ``f``'s parameters (``parameters_size(f)``,).

    Examples
    --------
    >>> field = pynode.nn.ConcatTime(torch.nn.Linear(3, 2))
    >>> model = pynode.nn.HyperNetwork(field, torch.nn.Linear(1, pynode.nn.parameters_size(field)))
    >>> pynode.solve(model, torch.randn(4, 2), [0.0, 1.0]).ys.shape
    torch.Size([2, 4, 2])
    """

    def __init__(self, f: torch.nn.Module, h: Any) -> None:
        super().__init__()
        check_callable("h", h, "h(t)")
        self.f = f
        self.h = h

    def forward(self, t: Tensor, y: Any, *args: Any) -> Any:
        """The field's value; ``t`` 0-dim."""
        if t.ndim:
            raise InputError(
                explain(f"t has shape {tuple(t.shape)}", "one time for all samples", "take GalerkinLinear instead")
            )
        return swapped(self.f, _moved(self.f, self.h(t.reshape(1))))(t, y, *args)


class ConditionalHyperNetwork(torch.nn.Module):
    """``f(t, y; theta + h(x))``: a network of the input produces the parameters of a field for every sample.

    ``NeuralODE(ConditionalHyperNetwork(f), condition=h)``, where ``h(x)`` has shape (batch, ``parameters_size(f)``).
    It is evaluated once a solve, which it crosses as an argument.

    Parameters
    ----------
    f : torch.nn.Module
        ``f(t, y, *args)``; called under ``torch.vmap`` with batches of one sample.

    Examples
    --------
    >>> field = pynode.nn.ConcatTime(torch.nn.Linear(3, 2))
    >>> h = torch.nn.Linear(2, pynode.nn.parameters_size(field))
    >>> model = pynode.nn.NeuralODE(pynode.nn.ConditionalHyperNetwork(field), condition=h)
    >>> model(torch.randn(4, 2)).shape
    torch.Size([4, 2])
    """

    def __init__(self, f: torch.nn.Module) -> None:
        super().__init__()
        self.f = f

    def forward(self, t: Tensor, y: Tensor, parameters: Tensor, *args: Any) -> Tensor:
        """``y`` (batch, ...), ``parameters`` (batch, size); further arguments go to ``f`` as they are."""

        def sample(own: Tensor, state: Tensor) -> Tensor:
            value: Tensor = swapped(self.f, _moved(self.f, own))(t, state[None], *args)
            return value[0]

        derivative: Tensor = torch.vmap(sample)(parameters, y)
        return derivative


def parameters_size(f: torch.nn.Module) -> int:
    """How many numbers a network has to produce to be the parameters of ``f``.

    Examples
    --------
    >>> pynode.nn.parameters_size(torch.nn.Linear(3, 2))
    8
    """
    return sum(x.numel() for x in f.parameters())


def _moved(f: torch.nn.Module, moves: Tensor) -> dict[str, Tensor]:
    """The parameters of ``f``, each moved by its part of ``moves`` (size,)."""
    named = dict(f.named_parameters())
    size = parameters_size(f)
    if moves.shape != (size,):
        raise InputError(
            explain(f"h returned shape {tuple(moves.shape)}", f"({size},), all parameters of f", "see parameters_size")
        )
    parts = torch.split(moves, [x.numel() for x in named.values()])
    return {name: x + part.reshape(x.shape) for (name, x), part in zip(named.items(), parts, strict=True)}
