"""Every sensitivity algorithm by its name."""

from __future__ import annotations

import difflib
from typing import Any

from pynode.errors import InputError, explain
from pynode.sensealg import (
    BacksolveAdjoint,
    CheckpointedAdjoint,
    DirectAdjoint,
    ForwardSensitivity,
    GaussAdjoint,
    GaussKronrodAdjoint,
    InterpolatingAdjoint,
    QuadratureAdjoint,
    ReversibleAdjoint,
    SensitivityAlgorithm,
)

SENSEALGS: tuple[type[SensitivityAlgorithm], ...] = (
    CheckpointedAdjoint,
    DirectAdjoint,
    BacksolveAdjoint,
    InterpolatingAdjoint,
    QuadratureAdjoint,
    GaussAdjoint,
    GaussKronrodAdjoint,
    ReversibleAdjoint,
    ForwardSensitivity,
)


def as_sensealg(sensealg: Any) -> SensitivityAlgorithm:
    """The sensitivity algorithm itself.

    Raises
    ------
    InputError
        For anything else, a name or a class included; the message lists the nearest ones.
    """
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


def sensealg_from_name(name: str) -> SensitivityAlgorithm:
    """The sensitivity algorithm of that class name with its default options; case and the name's last word
    (``Adjoint``, ``Sensitivity``) do not matter.

    Raises
    ------
    InputError
        For an unknown name; the message lists the known ones.
    """

    def short(name: str) -> str:
        return name.lower().removesuffix("adjoint").removesuffix("sensitivity")

    table = {short(cls.__name__): cls for cls in SENSEALGS}
    key = short(name)
    if key in table:
        return table[key]()
    near = difflib.get_close_matches(key, table, n=1, cutoff=0.4) or list(table)
    raise InputError(
        explain(
            f"unknown sensealg {name!r}",
            f"one of {', '.join(cls.__name__ for cls in SENSEALGS)}",
            f"did you mean {table[near[0]].__name__}?",
        )
    )
