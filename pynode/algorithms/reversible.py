"""Methods that can be run backward to rounding."""

from __future__ import annotations

from dataclasses import dataclass

from pynode.algorithms.base import FixedStep
from pynode.errors import InputError, explain


@dataclass(frozen=True)
class Reversible(FixedStep):
    """A method of order 2 that can be run backward to rounding, which ``ReversibleAdjoint`` needs.

    One evaluation a step. Reversible methods do not damp: where the solution decays fast, errors grow as fast.

    Parameters
    ----------
    adaptive : bool
        Choose the steps by an embedded error estimate (against Euler's step) and the tolerances, instead of taking
        them from ``dt``, ``steps`` or ``mesh``.
    dt, steps, mesh, interpolation, perturb
        See FixedStep.
    """

    adaptive: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [key for key in ("dt", "steps", "mesh", "perturb") if getattr(self, key) not in (None, False)]
        if self.adaptive and given:
            raise InputError(
                explain(
                    f"{self.name}(adaptive=True) got {' and '.join(given)}",
                    "steps chosen by the tolerances, or given ones",
                    f"drop adaptive=True or {' and '.join(given)}",
                )
            )


@dataclass(frozen=True)
class ReversibleHeun(Reversible):
    """Reversible Heun method of Kidger et al. (2021), "Efficient and Accurate Gradients for Neural SDEs", order 2.

    Examples
    --------
    >>> y0 = torch.ones(1, requires_grad=True)
    >>> options = {"algorithm": pynode.ReversibleHeun(steps=50), "sensealg": pynode.ReversibleAdjoint()}
    >>> sol = pynode.solve(lambda t, y: -y, y0, [0.0, 1.0], **options)
    >>> round(torch.autograd.grad(sol.ys[-1].sum(), y0)[0].item(), 3)
    0.368
    """


@dataclass(frozen=True)
class AsynchronousLeapfrog(Reversible):
    """Asynchronous leapfrog of Mutze (2013), order 2: the integrator of "MALI" (Zhuang et al. 2021).

    Examples
    --------
    >>> sol = pynode.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], algorithm=pynode.AsynchronousLeapfrog(steps=100))
    >>> round(sol.ys[-1].item(), 3)
    0.368
    """
