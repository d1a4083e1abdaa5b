"""A control: a path in closed form, piecewise polynomial in time."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor

from pynode.errors import InputError, explain
from pynode.transforms import any_true, number

Self = TypeVar("Self", bound="Control")


def piece_at(knots: Tensor, coefficients: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The polynomial in force at time ``t`` (0-dim), and the time since its knot.

    At a knot it is the piece that begins there. Counting knots, instead of branching on them, keeps the look-up a
    fixed graph of tensor operations: the Julia backend captures it.

    Returns
    -------
    piece : Tensor
        Coefficients (batch..., powers, channels), lowest power first.
    since : Tensor
        ``t`` minus the knot the piece begins at, 0-dim.
    """
    index = (t >= knots[1:-1]).sum().reshape(1)
    piece = coefficients.index_select(-3, index).squeeze(-3)
    return piece, t - knots.index_select(0, index).squeeze(0)


def polynomial(piece: Tensor, since: Tensor) -> Tensor:
    """Value (batch..., channels) of polynomials (batch..., powers, channels), by Horner's rule."""
    *lower, value = piece.unbind(-2)
    for coefficient in reversed(lower):
        value = coefficient + since * value
    return value


def slope(knots: Tensor, coefficients: Tensor, t: Tensor) -> Tensor:
    """Derivative (batch..., channels) at ``t`` (0-dim) of the path with these coefficients: what a field calls."""
    piece, since = piece_at(knots, coefficients, t)
    return polynomial(differentiated(piece), since)


def differentiated(coefficients: Tensor) -> Tensor:
    """Coefficients of the derivatives of polynomials (batch..., powers, channels)."""
    powers = torch.arange(1, coefficients.shape[-2], dtype=coefficients.dtype, device=coefficients.device)
    return coefficients[..., 1:, :] * powers.unsqueeze(-1)


class Control:
    """A path X(t) of shape (batch..., channels), a polynomial between each two knots.

    Attributes
    ----------
    knots : Tensor
        (K,), strictly increasing; the path is defined from the first to the last.
    coefficients : Tensor
        (batch..., K - 1, powers, channels): ``X(t) = sum_p coefficients[..., k, p, :] * (t - knots[k])**p`` in the
        k-th interval. Differentiable in the values the path was built from.
    observed : Tensor
        (T,), where on the path each row of the series has just been taken in.
    """

    def __init__(
        self,
        knots: Tensor,
        coefficients: Tensor,
        *,
        kinks: Tensor | None = None,
        bends: bool = False,
        observed: Tensor | None = None,
    ) -> None:
        """``kinks``: (K,), at which knots the derivative jumps; all by default."""
        self.knots = knots
        self.coefficients = coefficients
        self.observed = knots if observed is None else observed
        self._kinks = torch.ones_like(knots, dtype=torch.bool) if kinks is None else kinks
        self._bends = bends

    @property
    def channels(self) -> int:
        return self.coefficients.shape[-1]

    @property
    def jumps(self) -> list[float]:
        """Inner knots at which the derivative jumps: what a solver has to be told as ``d_discontinuities``."""
        # The knots as the field sees them, to the last bit.
        listed: list[float] = self.knots[1:-1][self._kinks[1:-1]].tolist()
        return listed

    @property
    def bends(self) -> list[float]:
        """Inner knots at which the second derivative jumps, if it does: good ``tstops``.

        A step over such a knot is mostly rejected: measured on Hermite paths, stopping there halves the evaluations.
        """
        listed: list[float] = self.knots[1:-1].tolist() if self._bends else []
        return listed

    @property
    def start(self) -> Tensor:
        """X at the first knot, (batch..., channels)."""
        return self.coefficients[..., 0, 0, :]

    def evaluate(self, t: Tensor | float) -> Tensor:
        """X(t).

        Parameters
        ----------
        t : float, or tensor of shape () or (M,)
            Times between the first and the last knot.

        Returns
        -------
        Tensor
            (batch..., *t.shape, channels).

        Raises
        ------
        InputError
            Outside the knots.
        """
        return self._at(t, self.coefficients)

    def derivative(self, t: Tensor | float) -> Tensor:
        """dX/dt; shapes and errors as ``evaluate``. At a jump it is the derivative just after."""
        return self._at(t, differentiated(self.coefficients))

    def to(self: Self, *args: Any, **kwargs: Any) -> Self:
        """The same path on another device or in another precision; arguments as for ``torch.Tensor.to``."""
        moved = copy.copy(self)
        for name in ("knots", "coefficients", "observed"):
            setattr(moved, name, getattr(self, name).to(*args, **kwargs))
        moved._kinks = self._kinks.to(moved.knots.device)
        return moved

    def _at(self, t: Tensor | float, coefficients: Tensor) -> Tensor:
        times = torch.as_tensor(t, dtype=self.knots.dtype, device=self.knots.device)
        if times.ndim > 1:
            raise InputError(
                explain(f"t has shape {tuple(times.shape)}", "a float or a tensor of shape () or (M,)", "flatten it")
            )
        if any_true((times < self.knots[0]) | (times > self.knots[-1])):
            low, high = number(self.knots[0]), number(self.knots[-1])
            raise InputError(
                explain(
                    f"t goes from {number(times.min()):.9g} to {number(times.max()):.9g}",
                    f"times between the knots, {low:.9g} to {high:.9g}",
                    "build the control from data that cover these times; it does not extrapolate",
                )
            )
        index = torch.searchsorted(self.knots[1:-1].contiguous(), times.detach().reshape(-1), right=True)
        pieces = coefficients.index_select(-3, index)
        since = (times.reshape(-1) - self.knots[index]).unsqueeze(-1)
        values = polynomial(pieces, since)
        return values if times.ndim else values.squeeze(-2)

    def __repr__(self) -> str:
        low, high = float(self.knots[0]), float(self.knots[-1])
        return (
            f"{type(self).__name__}(batch={tuple(self.coefficients.shape[:-3])}, channels={self.channels}, "
            f"{len(self.knots)} knots from {low:.6g} to {high:.6g})"
        )
