"""Implicit methods, for stiff problems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pynode.algorithms.base import FixedStep
from pynode.errors import InputError, explain


@dataclass(frozen=True)
class Implicit(FixedStep):
    """A method that solves linear systems with the Jacobian of ``f`` in every step, and so takes large steps where the
    problem is stiff.

    Adaptive by its own error estimate unless ``dt``, ``steps`` or ``mesh`` is given.

    Parameters
    ----------
    dt, steps, mesh, interpolation, perturb
        See FixedStep; without them the steps follow the tolerances.
    linsolve : "dense" or "gmres"
        ``"dense"``: the n x n Jacobian is made (by ``jac=``, or by n pullbacks at once) and factored; for up to some
        thousand states. ``"gmres"``: only products with it are made, and the systems are solved by GMRES without a
        preconditioner; for large states whose stiff part has few directions.
    """

    linsolve: str = "dense"

    #: What mass matrices the method takes: "none", "regular", or "singular" ones too.
    masses: ClassVar[str] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.linsolve not in ("dense", "gmres"):
            raise InputError(
                explain(f"{self.name}(linsolve={self.linsolve!r})", "'dense' or 'gmres'", "use one of them")
            )

    @property
    def adaptive(self) -> bool:
        return self.dt is None and self.steps is None and self.mesh is None
