"""What pynode's algorithms are called in SciML, options included; needs no Julia."""

from __future__ import annotations

import pytest

import pynode
from pynode.julia.names import expression_of, known


@pytest.mark.parametrize(
    ("algorithm", "expression"),
    [
        *((getattr(pynode, name)(), f"{name}()") for name in ("AB3", "AB4", "AB5", "ABM32", "ABM43", "ABM54")),
        (pynode.VCABM(), "VCABM()"),
        (pynode.FBDF(), "FBDF()"),
        (pynode.FBDF(max_order=2, linsolve="gmres"), "FBDF(max_order = Val(2), linsolve = KrylovJL_GMRES())"),
        (pynode.Tsit5(), "Tsit5()"),
        (pynode.AdaptiveHeun(), "Heun()"),
    ],
)
def test_expressions(algorithm, expression):
    assert known(algorithm)
    assert expression_of(algorithm) == expression


@pytest.mark.parametrize("algorithm", [pynode.ExplicitAdams(), pynode.ImplicitAdams(), pynode.VCABM(max_order=4)])
def test_what_sciml_does_not_have(algorithm):
    assert not known(algorithm)
