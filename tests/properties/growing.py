"""Fields ``g(tau, x)`` on vectors whose growth is known: an upper bound ``mu`` of the logarithmic norm of the Jacobian.

Two solutions separate at most by ``exp(mu * time)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

F64, C128 = torch.float64, torch.complex128


class Core(torch.nn.Module):
    """``g(tau, x)`` on vectors (n,).

    Attributes
    ----------
    mu : float
        Upper bound of the logarithmic norm of ``dg/dx`` everywhere.
    lipschitz : float
        Upper bound of the norm of ``dg/dx`` where solutions run, and of the frequency of what depends on time.
    drive : float
        Upper bound of ``g(tau, 0)`` where that is not of the size of the solution anyway.
    autonomous, linear : bool
        Whether ``g`` does not depend on ``tau``; whether it is ``A x``.
    """

    autonomous = True
    linear = False
    drive = 0.0
    mu: float
    lipschitz: float

    def exact(self, tau: Tensor, x0: Tensor) -> Tensor | None:
        """The solution (T, n) in double precision at ``tau`` (T,), None where there is no formula."""
        return None


def _norm(matrix: Tensor) -> float:
    return torch.linalg.matrix_norm(matrix.detach().to(wide(matrix.dtype)), 2).item()


def _log_norm(matrix: Tensor) -> float:
    """The largest eigenvalue of the Hermitian part."""
    m = matrix.detach().to(wide(matrix.dtype))
    return torch.linalg.eigvalsh((m + m.mH) / 2)[-1].item()


def wide(dtype: torch.dtype) -> torch.dtype:
    return C128 if dtype.is_complex else F64


def matrix_of(kind: str, n: int, rate: float, dtype: torch.dtype, numbers: torch.Generator) -> Tensor:
    """Of norm ``rate``: "stable" (negative definite), "turning" (skew-Hermitian) or "general"."""
    m = torch.randn(n, n, dtype=wide(dtype), generator=numbers)
    m = {"stable": lambda: -m @ m.mH, "turning": lambda: m - m.mH, "general": lambda: m}[kind]()
    size = torch.linalg.matrix_norm(m, 2)
    return (m * (rate / size) if size > 0 else m).to(dtype)


class Linear(Core):
    """``A x``."""

    linear = True

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(matrix)
        self.mu, self.lipschitz = _log_norm(matrix), max(_norm(matrix), 1e-3)  # a skew matrix of one number is zero

    def forward(self, tau: Tensor, x: Tensor) -> Tensor:
        return self.a @ x

    def exact(self, tau: Tensor, x0: Tensor) -> Tensor:
        a = self.a.detach().to(wide(self.a.dtype))
        return torch.linalg.matrix_exp(tau[:, None, None] * a) @ x0.to(a.dtype)


class Forced(Linear):
    """``A x + b cos(w tau + phase)``."""

    autonomous = linear = False

    def __init__(self, matrix: Tensor, b: Tensor, w: float, phase: float) -> None:
        super().__init__(matrix)
        self.b = torch.nn.Parameter(b)
        self.w, self.phase = w, phase
        self.lipschitz += w
        self.drive = b.norm().item()

    def forward(self, tau: Tensor, x: Tensor) -> Tensor:
        return self.a @ x + self.b * torch.cos(self.w * tau + self.phase)

    def exact(self, tau: Tensor, x0: Tensor) -> Tensor:
        n, dtype = len(self.b), wide(self.a.dtype)
        whole = torch.zeros(n + 2, n + 2, dtype=dtype)  # of (x, cos, sin)
        whole[:n, :n], whole[:n, n] = self.a.detach(), self.b.detach()
        whole[n, n + 1], whole[n + 1, n] = -self.w, self.w
        turn = torch.tensor([math.cos(self.phase), math.sin(self.phase)], dtype=dtype)
        start = torch.cat([x0.to(dtype), turn])
        return (torch.linalg.matrix_exp(tau[:, None, None] * whole) @ start)[:, :n]


class Modulated(Linear):
    """``cos(w tau + phase) A x``, whose matrices commute."""

    autonomous = linear = False

    def __init__(self, matrix: Tensor, w: float, phase: float) -> None:
        super().__init__(matrix)
        self.w, self.phase = w, phase
        self.mu = max(_log_norm(matrix), _log_norm(-matrix))
        self.lipschitz += w

    def forward(self, tau: Tensor, x: Tensor) -> Tensor:
        return torch.cos(self.w * tau + self.phase) * (self.a @ x)

    def exact(self, tau: Tensor, x0: Tensor) -> Tensor:
        a = self.a.detach().to(wide(self.a.dtype))
        integral = (torch.sin(self.w * tau + self.phase) - math.sin(self.phase)) / self.w
        return torch.linalg.matrix_exp(integral[:, None, None] * a) @ x0.to(a.dtype)


class Cubic(Core):
    """``A x - |x|^2 x`` elementwise: the second part contracts, so that ``mu`` is that of ``A``."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(matrix)
        self.mu = _log_norm(matrix)
        # From |x0| <= 1: d|x|/dt <= mu |x| - |x|^3 / n, so |x|^2 <= max(1, n mu); the slope of |x|^2 x is 3 |x|^2.
        self.lipschitz = _norm(matrix) + 3.0 * max(1.0, len(matrix) * self.mu)

    def forward(self, tau: Tensor, x: Tensor) -> Tensor:
        return self.a @ x - x * (x * x.conj())


ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "softplus": torch.nn.functional.softplus,
    "sin": torch.sin,
}


class Network(Core):
    """``W2 act(W1 x + v tau + b) - d x`` with slopes of ``act`` in [-1, 1]."""

    def __init__(self, act: str, n: int, rate: float, drift: float, dtype: torch.dtype, numbers: torch.Generator):
        super().__init__()
        width = 5

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=F64, generator=numbers)

        w1, w2 = draw(width, n), draw(n, width)
        scale = math.sqrt(rate / (_norm(w1) * _norm(w2))) if n else 1.0
        self.w1, self.w2 = (torch.nn.Parameter((scale * w).to(dtype)) for w in (w1, w2))
        self.b = torch.nn.Parameter(draw(width).to(dtype))
        self.v = torch.nn.Parameter((drift * draw(width)).to(dtype)) if drift else None
        self.d = 0.25 * rate
        self.autonomous = not drift
        self.act = ACTS[act]
        self.mu, self.lipschitz = rate - self.d, rate + self.d + 2.0 * drift

    def forward(self, tau: Tensor, x: Tensor) -> Tensor:
        inner = self.w1 @ x + self.b
        if self.v is not None:
            inner = inner + self.v * tau
        return self.w2 @ self.act(inner) - self.d * x


KINDS = ("stable", "turning", "general", "forced", "modulated", "cubic", "tanh", "softplus", "sin", "drifting")
CLOSED = ("stable", "turning", "general", "forced", "modulated")
LINEAR = ("stable", "turning", "general")


class Coupled(Core):
    """``q' = M p``, ``p' = -K q`` with positive definite ``M`` and ``K``, of 2 n numbers: for symplectic methods."""

    linear = True

    def __init__(self, n: int, rate: float, dtype: torch.dtype, seed: int) -> None:
        super().__init__()
        numbers = torch.Generator().manual_seed(seed)
        m, k = (-matrix_of("stable", n, rate, F64, numbers).to(dtype) for _ in range(2))
        self.m, self.k = torch.nn.Parameter(m), torch.nn.Parameter(k)
        self.mu, self.lipschitz = _log_norm(self.whole()), _norm(self.whole())

    def forward(self, tau: Tensor, x: Tensor) -> Tensor:
        q, p = x.chunk(2)
        return torch.cat([self.m @ p, -self.k @ q])

    def whole(self) -> Tensor:
        zero = torch.zeros_like(self.m)
        return torch.cat([torch.cat([zero, self.m], 1), torch.cat([-self.k, zero], 1)]).detach()

    def exact(self, tau: Tensor, x0: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(tau[:, None, None] * self.whole().double()) @ x0.double()


def core_of(kind: str, n: int, rate: float, dtype: torch.dtype, seed: int) -> Core:
    numbers = torch.Generator().manual_seed(seed)
    if kind in LINEAR:
        return Linear(matrix_of(kind, n, rate, dtype, numbers))
    if kind in ("forced", "modulated", "cubic"):
        matrix = matrix_of(("stable", "turning", "general")[seed % 3], n, rate, dtype, numbers)
        w, phase = 0.5 + 2.0 * torch.rand(2, generator=numbers, dtype=F64)
        if kind == "cubic":
            return Cubic(matrix)
        if kind == "modulated":
            return Modulated(matrix, w.item(), phase.item())
        return Forced(matrix, torch.randn(n, dtype=wide(dtype), generator=numbers).to(dtype), w.item(), phase.item())
    act = "tanh" if kind == "drifting" else kind
    return Network(act, n, rate, 1.0 if kind == "drifting" else 0.0, dtype, numbers)
