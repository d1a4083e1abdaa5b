"""Linear multistep methods."""

from __future__ import annotations

from dataclasses import dataclass

from pynode.algorithms.base import Algorithm, FixedStep
from pynode.errors import InputError, explain


@dataclass(frozen=True)
class Multistep(FixedStep):
    """A method that looks back: one or two evaluations a step, whatever its order.

    The first steps, and those behind a discontinuity (``d_discontinuities``; with ``perturb=True`` every step), are
    steps of ``Tsit5``'s fifth-order formula. The weights are those of the steps that were taken: a mesh of uneven
    steps, or a last step that is shorter, does not lower the order.

    Options are those of FixedStep; ``interpolation="hermite"`` stands for the polynomial that the step integrates,
    which costs no evaluation.
    """


@dataclass(frozen=True)
class AB3(Multistep):
    """Adams-Bashforth, three steps, order 3 (Bashforth and Adams 1883).

    Examples
    --------
    >>> sol = pynode.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], algorithm=pynode.AB3(steps=50))
    >>> sol.stats.forward.nfe, abs(sol.ys[-1].item() - math.exp(-1)) < 1e-5  # 50 steps, and a start
    (60, True)
    """


@dataclass(frozen=True)
class AB4(Multistep):
    """Adams-Bashforth, four steps, order 4.

    Examples
    --------
    >>> sol = pynode.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], algorithm=pynode.AB4(steps=50))
    >>> sol.stats.forward.nfe, abs(sol.ys[-1].item() - math.exp(-1)) < 1e-6
    (65, True)
    """


@dataclass(frozen=True)
class AB5(Multistep):
    """Adams-Bashforth, five steps, order 5.

    Examples
    --------
    >>> y0 = torch.ones(1, dtype=torch.float64)
    >>> sol = pynode.solve(lambda t, y: -y, y0, [0.0, 1.0], algorithm=pynode.AB5(steps=50))
    >>> sol.stats.forward.nfe, abs(sol.ys[-1].item() - math.exp(-1)) < 1e-7
    (70, True)
    """


@dataclass(frozen=True)
class ABM32(Multistep):
    """Adams-Bashforth of order 3 corrected once by Adams-Moulton of order 3 (PECE), two evaluations a step.

    Examples
    --------
    >>> sol = pynode.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], algorithm=pynode.ABM32(steps=20))
    >>> abs(sol.ys[-1].item() - math.exp(-1)) < 1e-5
    True
    """


@dataclass(frozen=True)
class ABM43(Multistep):
    """Adams-Bashforth of order 4 corrected once by Adams-Moulton of order 4 (PECE), two evaluations a step.

    Examples
    --------
    >>> sol = pynode.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], algorithm=pynode.ABM43(steps=20))
    >>> abs(sol.ys[-1].item() - math.exp(-1)) < 1e-6
    True
    """


@dataclass(frozen=True)
class ABM54(Multistep):
    """Adams-Bashforth of order 5 corrected once by Adams-Moulton of order 5 (PECE), two evaluations a step.

    Examples
    --------
    >>> y0 = torch.ones(1, dtype=torch.float64)
    >>> sol = pynode.solve(lambda t, y: -y, y0, [0.0, 1.0], algorithm=pynode.ABM54(steps=50))
    >>> abs(sol.ys[-1].item() - math.exp(-1)) < 1e-8
    True
    """


@dataclass(frozen=True)
class FixedAdams(FixedStep):
    """Adams methods of growing order on a uniform mesh, as torchdiffeq has them.

    The first two steps, and the first two behind every discontinuity, are those of ``RK38``; the order then grows by
    one a step to ``max_order - 1``, the number of evaluations that are looked back at. ``perturb=True`` evaluates just
    inside every step and looks back all the same: discontinuities belong into ``d_discontinuities``.

    The weights are those of equal steps: **on an uneven mesh the method is of order 1**, as it is in torchdiffeq.
    ``AB5``, ``ABM54`` and ``VCABM`` have the right ones.

    Parameters
    ----------
    max_order : int
        From 2 to 12. Below 4 every step is ``RK38``'s.
    """

    max_order: int = 12

    @property
    def remembers(self) -> bool:
        return True

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = isinstance(self.max_order, int) and not isinstance(self.max_order, bool)
        if not whole or not 2 <= self.max_order <= 12:
            raise InputError(
                explain(f"{self.name}(max_order={self.max_order!r})", "an integer from 2 to 12", "drop max_order")
            )


@dataclass(frozen=True)
class ExplicitAdams(FixedAdams):
    """torchdiffeq's ``explicit_adams``: Adams-Bashforth of order up to 11, one evaluation a step.

    Examples
    --------
    >>> adams = pynode.ExplicitAdams(dt=0.05, max_order=5)
    >>> sol = pynode.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], algorithm=adams)
    >>> round(sol.ys[-1].item(), 4)
    0.3679
    """


@dataclass(frozen=True)
class ImplicitAdams(FixedAdams):
    """torchdiffeq's ``implicit_adams``: that predictor, corrected by Adams-Moulton in a fixed-point iteration.

    A correction ends the iteration once it changes the step by less than the tolerances ``rtol`` and ``atol`` of the
    solve. Where it does not within ``max_iters`` corrections, a warning (RuntimeWarning) says so, and the oldest
    evaluation is forgotten, which lowers the order. Gradients are those of the corrections that were made.

    Parameters
    ----------
    max_order : int
    max_iters : int
        Most corrections a step, one evaluation each.

    Examples
    --------
    >>> sol = pynode.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], algorithm=pynode.ImplicitAdams(dt=0.05))
    >>> round(sol.ys[-1].item(), 4)
    0.3679
    """

    max_iters: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = isinstance(self.max_iters, int) and not isinstance(self.max_iters, bool)
        if not whole or self.max_iters < 1:
            raise InputError(explain(f"{self.name}(max_iters={self.max_iters!r})", "an integer >= 1", "take 4"))


@dataclass(frozen=True)
class VCABM(Algorithm):
    """Adams methods of variable step size and variable order, 1 to 12, in predictor-corrector form (PECE): two
    evaluations a step whatever the order.

    Shampine and Gordon (1975), "Computer Solution of Ordinary Differential Equations"; Hairer, Norsett and Wanner
    (1993), sections III.5 and III.7. For smooth problems that are not stiff, expensive ``f`` and tight tolerances.
    Steps change slowly: fields that jump or kink are better served by a Runge-Kutta method. Dense output is the
    polynomial that the step integrates.

    Parameters
    ----------
    max_order : int
        Of the predictor, from 1 to 12; the corrector is of one order more.

    Examples
    --------
    >>> y0, t = torch.ones(1, dtype=torch.float64), [0.0, 10.0]
    >>> sol = pynode.solve(lambda t, y: torch.cos(t) * y, y0, t, algorithm=pynode.VCABM(), rtol=1e-9, atol=1e-9)
    >>> abs(sol.ys[-1].item() - math.exp(math.sin(10.0))) < 1e-6
    True
    """

    max_order: int = 12

    def __post_init__(self) -> None:
        whole = isinstance(self.max_order, int) and not isinstance(self.max_order, bool)
        if not whole or not 1 <= self.max_order <= 12:
            raise InputError(
                explain(f"VCABM(max_order={self.max_order!r})", "an integer from 1 to 12", "drop max_order")
            )
