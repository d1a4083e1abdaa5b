"""A field at one point together with its derivatives along directions of time and state, on or off a tape."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pynode.errors import GradientError, explain
from pynode.inference_tensors import explained
from pynode.problem import Field
from pynode.transforms import active


class Tangents:
    """``f(t, y)`` and ``df/dt tau + df/dy v`` there: one evaluation of ``f``, and a pullback through its pullback for
    every direction.

    Parameters
    ----------
    field : Field
    time : Tensor ()
    y : Tensor (n,)
    taped : bool
        Both results are differentiable where ``time``, ``y`` or the parameters of ``f`` are.

    Attributes
    ----------
    value : Tensor (n,)
        ``f(t, y)``.
    leaves : list of Tensor
        Made here, to be differentiated by: they stand on the tape like inputs.
    """

    def __init__(self, field: Field, time: Tensor, y: Tensor, taped: bool) -> None:
        self._taped = taped
        self._checked = not taped or active()
        self.leaves: list[Tensor] = []
        with torch.inference_mode(False), torch.enable_grad(), explained("a derivative along the solution"):
            self._at = [self._own(time), self._own(y)]
            self._output = out = field.evaluate(*self._at)
            # Pulled back through here for directions, there for gradients.
            value = field.watched(out.view_as(out)) if taped else out
        self._pulled: list[Tensor | None] | None = None
        self.value = value if taped else value.detach().clone()

    def _own(self, x: Tensor) -> Tensor:
        """``x`` where pullbacks end: not at what it was made from."""
        if self._taped and x.requires_grad:
            return x.view_as(x)
        self.leaves.append(x.detach().clone().requires_grad_())
        return self.leaves[-1]

    def along(self, tau: Any, v: Tensor | None = None) -> Tensor | None:
        """``df/dt tau + df/dy v`` (n,) for a number ``tau`` and a vector ``v`` (n,), None for one that is zero, as
        ``v`` has to be off the tape; None where ``f`` depends on nothing that moves.

        Raises
        ------
        GradientError
            If torch cannot differentiate ``f`` twice.
        """
        if not self._output.requires_grad:
            return None
        outputs, seeds = [], []
        for derivative, seed in zip(self._pullback(), (tau, v), strict=False):
            if derivative is not None and seed is not None:
                if not derivative.requires_grad:
                    raise _refusal()
                outputs.append(derivative)
                seeds.append(torch.as_tensor(seed, dtype=derivative.dtype, device=derivative.device))
        if not outputs:
            return None
        with torch.inference_mode(False), torch.enable_grad():
            (found,) = torch.autograd.grad(outputs, [self._u], seeds, retain_graph=True, create_graph=self._taped)
        if not self._checked:
            self._checked = True
            self._check_linear(found.detach(), outputs, seeds)
        return found if self._taped else found.detach()

    def _pullback(self) -> list[Tensor | None]:
        """``u df/dt`` and ``u df/dy`` for a free ``u``, in which they are linear."""
        if self._pulled is None:
            out = self._output
            with torch.inference_mode(False), torch.enable_grad():
                # Any u will do; with one without zeros a pullback that autograd does not see through shows.
                self._u = torch.linspace(1.0, 2.0, out.numel(), dtype=out.dtype, device=out.device).requires_grad_()
                at = self._at if self._taped else self._at[:1]  # off the tape it is all about time
                found = torch.autograd.grad(out, at, self._u, create_graph=True, allow_unused=True)
            self._pulled = list(found)
        return self._pulled

    def _check_linear(self, found: Tensor, outputs: list[Tensor], seeds: list[Tensor]) -> None:
        """Raise GradientError unless ``u (J v) = (u J) v``: a pullback that loses a part of its graph on the way gives
        less, and torch does not always say so."""
        with torch.no_grad():
            u = self._u.detach()
            left, size = torch.dot(found, u), torch.dot(found.abs(), u)
            for derivative, seed in zip(outputs, seeds, strict=True):
                left = left - (derivative * seed).sum()
                size = size + (derivative * seed).abs().sum()
            off, most = left.abs().item(), math.sqrt(torch.finfo(u.dtype).eps) * size.item()
        if off > most:  # not so where f overflowed
            raise _refusal()

    _u: Tensor


def _refusal() -> GradientError:
    return GradientError(
        explain(
            "a pullback through f lost its graph, so that f has no derivatives along directions",
            "an f that torch can differentiate twice: Rosenbrock methods need that where f depends on time, and for "
            "gradients",
            "write f without once-differentiable functions, or use an implicit method that needs the Jacobian alone, "
            "such as KenCarp4()",
        )
    )
