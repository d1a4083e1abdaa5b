"""Vector-Jacobian products of a field, as the continuous adjoints use them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pynode.evaluations import changed_input, versions
from pynode.native.adjoints.accumulator import Accumulator
from pynode.native.vmap_refusal import refuses

if TYPE_CHECKING:
    from pynode.native.compiled import CompiledNodes
    from pynode.native.record import NativeRecord


#: Most numbers of the states at several times that ``f`` is evaluated at in one call; beyond it calls cost little.
TOGETHER = 2**20


class Products:
    """Vector-Jacobian products of the field with respect to the state and to all it depends on.

    Attributes
    ----------
    aliases : list of Tensor
        Stand-ins for the differentiable tensors of ``args``.
    inputs : list of Tensor
        ``aliases`` and parameters.
    reached : list of bool
        Which of ``inputs`` some product so far depended on.
    """

    def __init__(self, record: NativeRecord) -> None:
        request = record.request
        assert request.dependencies is not None
        self.dependencies = request.dependencies
        self.aliases = [x.detach().requires_grad_() for x in self.dependencies.arguments]
        self.plain = request.problem.field(request.stats.backward)
        self.field = self.plain.with_args(request.problem.arguments.replaced(self.aliases))
        self.inputs = [*self.aliases, *self.dependencies.parameters]
        self.sizes = [x.numel() * (2 if x.is_complex() else 1) for x in self.inputs]
        self.n = self.field.layout.size
        self.reached = [False] * len(self.inputs)
        self._looked = False
        self._batches = True
        self._graph: CompiledNodes | None = None
        if request.compile:
            from pynode.native.compiled import CompiledNodes  # imports torch's compiler

            self._graph = CompiledNodes(self.plain)

    @property
    def compiled(self) -> bool:
        """Whether products at a fixed number of times are one graph."""
        return self._graph is not None

    def state(self, t: Tensor, y: Tensor, a: Tensor) -> Tensor:
        """``a df/dy`` (n,)."""
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            dy = self.field(t, y)
        if not self._looked:
            self.look(dy, y)
        if not dy.requires_grad:
            return torch.zeros_like(a)
        (gradient,) = torch.autograd.grad(dy, [y], a, allow_unused=True)
        self.field.counts.nvjp += 1
        return torch.zeros_like(a) if gradient is None else gradient

    def along(self, times: list[float], ys: Tensor, weighted: Sequence[Tensor]) -> list[tuple[Tensor | None, ...]]:
        """``sum_j a_j df/dp(t_j, y_j)`` for every tensor of ``inputs``, once for each (m, n) tensor ``a`` of
        ``weighted``; None where ``f`` does not depend on it at these times. ``ys`` is (m, n)."""
        if not self.inputs:
            return [()] * len(weighted)
        if self._graph is not None:
            graphed = self._graph(self.inputs, times, ys, weighted)
            if graphed is not None:
                return [tuple(found) for found in graphed]
        if self._batches and ys.numel() <= TOGETHER:
            try:
                together = self._along(*self._evaluated_together(times, ys), weighted)
                if self._graph is not None:
                    self._graph.looked(together)
                return together
            except Exception as error:
                # torch.vmap refuses what depends on values, draws random numbers or writes into buffers. Such an f is
                # evaluated at one time after the other, which raises again whatever f itself raised.
                if not refuses(error):
                    raise
                self._batches = False
        sums = [Accumulator(len(self.inputs)) for _ in weighted]
        for j, (t, y) in enumerate(zip(times, ys.unbind(), strict=True)):
            with torch.enable_grad():
                # A state that asks for a gradient, as f may do something else with one that does not.
                y = y.detach().requires_grad_()
                dy = self.field(self.field.time(t), y)
            self.look(dy, y)
            for total, found in zip(sums, self._along(dy, 1, [a[j] for a in weighted]), strict=True):
                total.add(found)
        return [tuple(total.sums) for total in sums]

    def _evaluated_together(self, times: list[float], ys: Tensor) -> tuple[Tensor, int]:
        """``f`` (m, n) at all times in one call."""
        field, layout = self.field, self.field.layout
        with torch.enable_grad():
            stacked = torch.tensor(times, dtype=layout.dtype, device=layout.device)
            before = field.counts.nfe
            ys = ys.detach().requires_grad_()
            written = versions(ys)
            dy: Tensor = torch.vmap(field)(stacked, ys)
            if versions(ys) != written:  # which what torch.vmap hands to f does not tell
                raise changed_input()
        field.counts.nfe = before + len(times)
        self.look(dy, ys)
        return dy, len(times)

    def _along(self, dy: Tensor, count: int, weighted: Sequence[Tensor]) -> list[tuple[Tensor | None, ...]]:
        if not dy.requires_grad:
            return [(None,) * len(self.inputs) for _ in weighted]
        found: list[tuple[Tensor | None, ...]] = []
        for k, a in enumerate(weighted):
            more = k + 1 < len(weighted)
            found.append(torch.autograd.grad(dy, self.inputs, a, allow_unused=True, retain_graph=more))
            self.field.counts.nvjp += count
        return found

    def joint(self, t: Tensor, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """``f`` (n,) and ``[a df/dy, a df/dp...]`` in one flat vector."""
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            dy = self.field(t, y)
        self.look(dy, y)
        if not dy.requires_grad:  # f depends on none of its inputs here
            return dy, a.new_zeros(self.n + sum(self.sizes))
        gradients = torch.autograd.grad(dy, [y, *self.inputs], a, allow_unused=True)
        self.field.counts.nvjp += 1
        parts = [_flat(gradients[0], self.n, a)]
        for index, (gradient, size) in enumerate(zip(gradients[1:], self.sizes, strict=True)):
            self.reached[index] |= gradient is not None
            # Parameters may be of another precision than the state; the quadrature is done in the state's.
            parts.append(_flat(gradient, size, a))
        return dy.detach(), torch.cat(parts)

    def look(self, dy: Tensor, y: Tensor) -> None:
        """Raise GradientError if ``f`` reached a parameter that it is not known to depend on."""
        self._looked = True
        self.dependencies.check_reached([dy], [y, *self.aliases])

    def shaped(self, flat: Tensor) -> list[Tensor | None]:
        """Gradients of ``inputs`` from a flat vector of them, None where none was ever reached."""
        gradients: list[Tensor | None] = []
        parts = torch.split(flat, self.sizes) if self.sizes else ()
        for part, like, reached in zip(parts, self.inputs, self.reached, strict=True):
            if not reached:
                gradients.append(None)
            elif like.is_complex():
                gradients.append(torch.view_as_complex(part.reshape(*like.shape, 2).clone()).to(like.dtype))
            else:
                gradients.append(part.reshape(like.shape).to(like.dtype))
        return gradients


def _flat(gradient: Tensor | None, size: int, like: Tensor) -> Tensor:
    if gradient is None:
        return like.new_zeros(size)
    real = torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient
    return real.reshape(-1).to(like.dtype)
