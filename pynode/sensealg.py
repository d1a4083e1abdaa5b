"""Sensitivity algorithms: how a gradient is obtained. Names and options only, no arithmetic.

Names are those of SciMLSensitivity.jl.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pynode.algorithms import Algorithm, algorithm_from_name
from pynode.controllers import PIDController
from pynode.errors import InputError, explain


@dataclass(frozen=True)
class SensitivityAlgorithm:
    """Base class of all sensitivity algorithms."""

    @property
    def name(self) -> str:
        return type(self).__name__


@dataclass(frozen=True)
class DirectAdjoint(SensitivityAlgorithm):
    """Automatic differentiation through the accepted steps of the solver, on torch's own tape.

    The step-size search is not differentiated. Memory grows with the number of evaluations. The only sensitivity
    algorithm that can be differentiated again (``create_graph=True``).
    """


@dataclass(frozen=True)
class CheckpointedAdjoint(SensitivityAlgorithm):
    """Exact discrete adjoint of the accepted steps, each replayed from its stored state: the default.

    The gradient equals ``DirectAdjoint``'s up to rounding. Memory: one state per step, or at most about
    ``checkpoints`` of them plus those of one segment between two checkpoints, at the price of one more integration.

    Parameters
    ----------
    checkpoints : int, optional
        Upper bound of the states kept by the forward solve. Whenever it is reached every other one is dropped; with
        ``checkpoints`` near the square root of the number of steps, memory grows like that root.

    References
    ----------
    Zhuang et al. (2020), "Adaptive Checkpoint Adjoint Method for Gradient Estimation in Neural ODE".
    """

    checkpoints: int | None = None

    def __post_init__(self) -> None:
        if self.checkpoints is not None and (self.checkpoints != int(self.checkpoints) or self.checkpoints < 2):
            raise InputError(
                explain(f"CheckpointedAdjoint(checkpoints={self.checkpoints})", "None or an integer >= 2", "give >= 2")
            )


@dataclass(frozen=True)
class BacksolveAdjoint(SensitivityAlgorithm):
    """Continuous adjoint integrated backward together with the state (Chen et al. 2018): constant memory.

    The state is restarted from the stored value at every saved time. Where the state cannot be reconstructed backward
    (dissipative, stiff or chaotic fields) the gradient would be wrong: the mismatch at every saved time is checked.

    Parameters
    ----------
    algorithm : Algorithm or str, optional
        Integrator of the adjoint; the forward one by default. A fixed one with a ``mesh`` of its own has it called
        for each stretch between two saved times, backward.
    rtol, atol : float, or tensor, optional
        Tolerances of the adjoint; the forward ones by default. A tensor has the length of the flattened state, or of
        the flattened augmented state ``(y, adjoint, arguments..., parameters...)``.
    norm : "seminorm", "full" or callable
        Error norm of the adjoint solve. ``"seminorm"`` (Kidger, Chen and Lyons 2021) leaves the parameter channels,
        which are plain integrals, out of step control. ``"full"`` is the largest of the RMS norms of state, adjoint
        and parameter channels. A callable gets the tuple ``(y, adjoint, *parameters)`` of scaled errors, each in
        the shape of its tensor (``y`` and ``adjoint`` flat), and returns a scalar tensor or a float.
    controller : PIDController, optional
        Step control of the adjoint; the forward one by default.
    reconstruction_rtol : float or None
        Largest accepted relative distance between the state integrated backward and the stored one; ``None`` turns
        the check off.
    max_steps : int, optional
        Largest number of attempted steps between two saved times; by default the forward limit, and no more than
        1000 beyond thirty times the forward steps where algorithm and tolerances are the forward ones.
    on_mismatch : "raise" or "warn"
        What a failed reconstruction check does.
    dt0 : float, optional
        First step of every stretch between two saved times, chosen by Hairer's rule by default.
    dtmin, dtmax, tstops, d_discontinuities : optional
        As for ``pynode.solve``; the forward ones by default.
    observer : object, optional
        As for ``pynode.solve``, called with the flat augmented state ``(y, adjoint, arguments..., parameters...)``.
    """

    algorithm: Algorithm | None = None
    rtol: float | Tensor | None = None
    atol: float | Tensor | None = None
    norm: str | Callable[[tuple[Any, ...]], Any] = "seminorm"
    controller: PIDController | None = None
    reconstruction_rtol: float | None = 1e-2
    max_steps: int | None = None
    on_mismatch: str = "raise"
    dt0: float | None = None
    dtmin: float | None = None
    dtmax: float | None = None
    tstops: Sequence[float] | None = None
    d_discontinuities: Sequence[float] | None = None
    observer: Any = None

    def __post_init__(self) -> None:
        if self.on_mismatch not in ("raise", "warn"):
            raise InputError(
                explain(f"BacksolveAdjoint(on_mismatch={self.on_mismatch!r})", "'raise' or 'warn'", "use one of them")
            )
        if isinstance(self.algorithm, str):
            object.__setattr__(self, "algorithm", algorithm_from_name(self.algorithm))  # type: ignore[unreachable]
        if self.norm not in ("seminorm", "full") and not callable(self.norm):
            raise InputError(
                explain(f"BacksolveAdjoint(norm={self.norm!r})", "'seminorm', 'full' or a callable", "use 'seminorm'")
            )


SENSEALGS: tuple[type[SensitivityAlgorithm], ...] = (CheckpointedAdjoint, DirectAdjoint, BacksolveAdjoint)


def as_sensealg(sensealg: Any) -> SensitivityAlgorithm:
    """The sensitivity algorithm itself, or the default for None.

    Raises
    ------
    InputError
        For anything else, a name or a class included; the message lists the nearest ones.
    """
    if sensealg is None:
        return CheckpointedAdjoint()
    if isinstance(sensealg, SensitivityAlgorithm):
        return sensealg
    name = sensealg.__name__ if isinstance(sensealg, type) else str(sensealg)
    table = {cls.__name__.lower(): cls.__name__ for cls in SENSEALGS}
    table |= {key.removesuffix("adjoint"): full for key, full in table.items()}
    near = [table[key] for key in difflib.get_close_matches(name.lower(), table, n=3, cutoff=0.5)]
    choices = " or ".join(f"sensealg={x}()" for x in dict.fromkeys(near or table.values()))
    raise InputError(
        explain(
            f"sensealg is {sensealg!r}",
            f"a sensitivity algorithm object, one of {', '.join(cls.__name__ for cls in SENSEALGS)}",
            f"write {choices}",
        )
    )
