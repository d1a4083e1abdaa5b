"""A separable field on a pair ``(q, p)``, one half at a time: ``dq/dt = f_q(t, p)``, ``dp/dt = f_p(t, q)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pynode.errors import FieldError, InputError, explain
from pynode.evaluations import packed
from pynode.layout import Layout
from pynode.problem import Field
from pynode.running_cost import Costed, CostedLayout
from pynode.transforms import any_true


class Halves:
    """The halves of a field, as functions of flat parts of the state, counted like the field.

    Parameters
    ----------
    field : Field
        Of a state ``(q, p)``, or of one with a running cost.
    name : str
        Of the method, for messages.

    Attributes
    ----------
    sizes : list of int
        Channels of ``q``, of ``p``, and of the running cost if there is one.

    Raises
    ------
    InputError
        If the state is no pair.
    """

    def __init__(self, field: Field, name: str) -> None:
        self.field, self.name = field, name
        layout: Layout = field.layout
        f: Any = field.f
        self._cost: Callable[..., Any] | None = None
        self._cost_layout: Layout | None = None
        self._state = layout
        if isinstance(f, Costed) and isinstance(layout, CostedLayout):
            self._state, self._cost_layout = layout.state, layout.cost
            f, self._cost = f.f, f.cost
        template = self._state.template
        if not isinstance(template, tuple | list) or len(template) != 2:
            came = f"a tuple of {len(template)}" if isinstance(template, tuple | list) else type(template).__name__
            raise InputError(
                explain(
                    f"y0 is {'a tensor' if self._state.is_tensor else came} and the algorithm is {name}",
                    "a state (q, p): a tuple of positions and momenta (or velocities)",
                    "split the state, or take an algorithm for all states, such as DP5()",
                )
            )
        self._f = f
        q, p = self._state.unpack(
            torch.empty(layout.size, dtype=layout.dtype, device=layout.device)[: self._state.size]
        )
        self._q, self._p = Layout(q, "f.velocity", "q"), Layout(p, "f.force", "p")
        self.sizes = [self._q.size, self._p.size]
        if self._cost_layout is not None:
            self.sizes.append(self._cost_layout.size)
        velocity, force = getattr(f, "velocity", None), getattr(f, "force", None)
        #: Whether the field has them apart.
        self.apart = callable(velocity) and callable(force)
        self._velocity, self._force = velocity, force

    def split(self, y: Tensor) -> list[Tensor]:
        """``q``, ``p``, and the running cost if there is one, of a flat state."""
        return list(torch.split_with_sizes(y, self.sizes))  # torch.split costs as much again

    def velocity(self, t: Tensor, q: Tensor, p: Tensor) -> Tensor:
        """dq/dt, which depends on ``p`` alone."""
        if not self.apart or self._velocity is None:
            return self._whole(t, q, p)[: self.sizes[0]]
        self.field.counts.nfe += 1
        return self.field.watched(packed(self._q, t, self._velocity(t, self._p.unpack(p), *self.field.args)))

    def force(self, t: Tensor, q: Tensor, p: Tensor) -> Tensor:
        """dp/dt, which depends on ``q`` alone."""
        if not self.apart or self._force is None:
            return self._whole(t, q, p)[self.sizes[0] :]
        self.field.counts.nfe += 1
        rate = self.field.watched(packed(self._p, t, self._force(t, self._q.unpack(q), *self.field.args)))
        # Kept beyond the next evaluation, while f may write its next result into the same memory.
        return rate if rate.requires_grad else rate.clone()

    def cost(self, t: Tensor, q: Tensor, p: Tensor) -> Tensor:
        """The running cost's rate."""
        assert self._cost is not None
        assert self._cost_layout is not None
        self.field.counts.nfe += 1
        return self.field.watched(packed(self._cost_layout, t, self._cost(t, self._pair(q, p), *self.field.args)))

    def check(self, t: Tensor, h: float, y: Tensor) -> None:
        """Raise FieldError where the field is seen not to be separable, on the first step of length ``h``, or where its
        halves are not those of the whole. What is not seen there is not found: this is no proof."""
        with torch.no_grad():
            q, p, *_ = (part.detach() for part in self.split(y))
            if self.apart:
                dq, dp = self._parts(t, q, p)
                self._compare("f.velocity(t, p) is not the first half of f(t, (q, p))", self.velocity(t, q, p), dq)
                self._compare("f.force(t, q) is not the second half of f(t, (q, p))", self.force(t, q, p), dp)
                return
            _, dp = self._parts(t, q, p)
            p1 = p + 0.5 * h * dp
            dq1, dp1 = self._parts(t, q, p1)
            self._compare("the dp/dt that f returned changes with p", dp1, dp)
            dq2, _ = self._parts(t, q + h * dq1, p1)
            self._compare("the dq/dt that f returned changes with q", dq2, dq1)

    def _compare(self, what: str, found: Tensor, expected: Tensor) -> None:
        """Raise FieldError if two values differ by more than rounding; what is not finite shows in the solve."""
        bound = 1e3 * torch.finfo(found.dtype).eps * torch.maximum(found.abs().max(), expected.abs().max())
        if any_true((found - expected).abs().max() > bound):
            raise FieldError(
                explain(
                    what,
                    f"a separable field, dq/dt = f_q(t, p) and dp/dt = f_p(t, q), as {self.name} evaluates its halves "
                    "one after the other",
                    "take an algorithm for all fields, such as DP5() or RK4()",
                )
            )

    def _parts(self, t: Tensor, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        dq, dp = torch.split(self._whole(t, q, p), self.sizes[:2])
        return dq, dp

    def _whole(self, t: Tensor, q: Tensor, p: Tensor) -> Tensor:
        self.field.counts.nfe += 1
        return self.field.watched(packed(self._state, t, self._f(t, self._pair(q, p), *self.field.args)))

    def _pair(self, q: Tensor, p: Tensor) -> Any:
        both = (self._q.unpack(q), self._p.unpack(p))
        kind = type(self._state.template)
        return kind(*both) if hasattr(kind, "_fields") else kind(both)
