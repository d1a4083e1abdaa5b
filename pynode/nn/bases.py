"""Bases of functions of time, in which depth-varying parameters are expanded.

A basis is called with ``t`` of any shape (...) and returns its functions' values (..., size).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pynode.errors import InputError, explain


class Basis(torch.nn.Module):
    """``size`` functions on the interval ``span``, which is mapped to ``x`` in [-1, 1]. They extend beyond it.

    Parameters
    ----------
    size : int
        Number of functions.
    span : (float, float)
        The times of the two ends.

    Examples
    --------
    >>> basis = pynode.nn.Polynomial(3, span=(0.0, 2.0))
    >>> isinstance(basis, pynode.nn.Basis), basis(torch.tensor(2.0))  # t = 2 is x = 1
    (True, tensor([1., 1., 1.]))
    """

    def __init__(self, size: int, span: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__()
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(explain(f"{type(self).__name__} of {size!r} functions", "an integer >= 1", "give more"))
        if not (math.isfinite(span[0]) and math.isfinite(span[1]) and span[0] != span[1]):
            raise InputError(explain(f"span = {span}", "two different finite times", "give those of the solve"))
        self.size = size
        self.span = (float(span[0]), float(span[1]))

    def forward(self, t: Tensor) -> Tensor:
        """Values (..., size) at ``t`` (...)."""
        start, end = self.span
        return self.values((2 * t - (start + end)) / (end - start))

    def values(self, x: Tensor) -> Tensor:
        """Values (..., size) at ``x`` (...) in [-1, 1]."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"size={self.size}, span={self.span}"


class Polynomial(Basis):
    """``1, x, x^2, ..., x^(size-1)``.

    Examples
    --------
    >>> pynode.nn.Polynomial(4)(torch.tensor(0.75))  # powers of x = 1/2
    tensor([1.0000, 0.5000, 0.2500, 0.1250])
    """

    def values(self, x: Tensor) -> Tensor:
        powers = [torch.ones_like(x)]
        while len(powers) < self.size:
            powers.append(powers[-1] * x)
        return torch.stack(powers, dim=-1)


class Chebyshev(Basis):
    """Chebyshev polynomials of the first kind: ``T_0 = 1, T_1 = x, T_(k+1) = 2 x T_k - T_(k-1)``.

    Examples
    --------
    >>> pynode.nn.Chebyshev(4)(torch.tensor(0.75))  # T_0 .. T_3 at x = 1/2
    tensor([ 1.0000,  0.5000, -0.5000, -1.0000])
    """

    def values(self, x: Tensor) -> Tensor:
        found = [torch.ones_like(x), x]
        while len(found) < self.size:
            found.append(2 * x * found[-1] - found[-2])
        return torch.stack(found[: self.size], dim=-1)


class Fourier(Basis):
    """``1, cos(pi k x), sin(pi k x)`` for ``k = 1, ..., harmonics``: of the period of the span, ``2 harmonics + 1``
    functions.

    Parameters
    ----------
    harmonics : int
    span : (float, float)
        One period.

    Examples
    --------
    >>> pynode.nn.Fourier(1)(torch.tensor(1.0)).shape, pynode.nn.Fourier(3)(torch.tensor(1.0)).shape
    (torch.Size([3]), torch.Size([7]))
    """

    def __init__(self, harmonics: int, span: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__(2 * harmonics + 1, span)
        self.harmonics = harmonics

    def values(self, x: Tensor) -> Tensor:
        waves = [math.pi * k * x for k in range(1, self.harmonics + 1)]
        return torch.stack([torch.ones_like(x), *(w.cos() for w in waves), *(w.sin() for w in waves)], dim=-1)


class RBF(Basis):
    """Gaussians ``exp(-((x - c_k) / w)^2 / 2)`` at learned centres with learned widths.

    They start equidistant over the span with the distance of two as their width.

    Parameters
    ----------
    size : int
    span : (float, float)
    learned : bool
        Centres and widths are parameters; otherwise buffers.

    Examples
    --------
    >>> psi = pynode.nn.RBF(3)
    >>> psi(torch.tensor(0.5)).detach(), len(list(psi.parameters()))
    (tensor([0.6065, 1.0000, 0.6065]), 2)
    """

    def __init__(self, size: int, span: tuple[float, float] = (0.0, 1.0), learned: bool = True) -> None:
        super().__init__(size, span)
        centres = torch.linspace(-1, 1, size) if size > 1 else torch.zeros(1)
        widths = torch.full((size,), 2.0 / max(size - 1, 1)).log()
        if learned:
            self.centres, self.log_widths = torch.nn.Parameter(centres), torch.nn.Parameter(widths)
        else:
            self.register_buffer("centres", centres)
            self.register_buffer("log_widths", widths)

    def values(self, x: Tensor) -> Tensor:
        distance = (x[..., None] - self.centres) * torch.exp(-self.log_widths)
        return torch.exp(-0.5 * distance * distance)
