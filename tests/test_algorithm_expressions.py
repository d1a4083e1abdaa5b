"""Algorithms in SciML's spelling, read without being run."""

from __future__ import annotations

import pytest
import torch

import pynode
from pynode import AutoSwitch, AutoTsit5, AutoVern7, AutoVern9, KenCarp4, Rodas5P, Rosenbrock23, Tsit5
from pynode.algorithms import as_algorithm


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("AutoTsit5(Rosenbrock23())", AutoTsit5(Rosenbrock23())),
        (" AutoVern7( Rodas5P() ) ", AutoVern7(Rodas5P())),
        ("AutoVern9(KenCarp4(linsolve='gmres'))", AutoVern9(KenCarp4(linsolve="gmres"))),
        ('AutoVern9(KenCarp4(; linsolve="gmres"))', AutoVern9(KenCarp4(linsolve="gmres"))),
        (
            "AutoTsit5(Rosenbrock23(); maxstiffstep=5, stiffalgfirst=true, stifftol=0.8)",
            AutoTsit5(Rosenbrock23(), maxstiffstep=5, stiffalgfirst=True, stifftol=0.8),
        ),
        ("AutoTsit5(Rosenbrock23(), stiffalgfirst=False)", AutoTsit5(Rosenbrock23())),
        ("AutoSwitch(Tsit5(), Rosenbrock23())", AutoSwitch(Tsit5(), Rosenbrock23())),
        ("Rosenbrock23()", Rosenbrock23()),
    ],
)
def test_what_is_written_is_what_is_meant(text, expected):
    assert as_algorithm(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("AutoTsit5()", "missing a required argument: 'stiff'"),
        ("AutoTsit5(Rosenbrock23)", "'Rosenbrock23' is no call"),
        ("AutoTsit5(Rosenbrock23(", "it is no call"),
        ("AutoTsit5(NoSuch())", "there is no NoSuch"),
        ("AutoDP5(Rosenbrock23())", "there is no AutoDP5"),
        ("AutoTsit5(Rosenbrock23(1.0))", "Rosenbrock23 takes keyword arguments alone"),
        ("AutoTsit5(Rosenbrock23(nosuch=1))", "unexpected keyword argument 'nosuch'"),
        ("AutoTsit5(Rosenbrock23(); nosuch=1)", "no option nosuch"),
        ("AutoTsit5(Rosenbrock23(); maxstiffstep=-1)", "a positive number"),
        ("AutoTsit5(Tsit5())", "an implicit adaptive algorithm object"),
        ("AutoTsit5(Rosenbrock23(linsolve=KLUFactorization()))", "is not a number, a string"),
        ("AutoTsit5(Rosenbrock23(), **{'maxstiffstep': 3})", "does not name"),
        ("AutoTsit5(Rosenbrock23()) + 1", "no call of an algorithm's name"),
        ("__import__('os').system('true')", "no call of an algorithm's name"),
        ("print(Rosenbrock23())", "there is no print"),
        ("AutoTsit5(" * 300 + ")" * 300, "it is no call"),
        ("(\x00)", "it is no call"),
    ],
)
def test_anything_else_is_refused(text, message):
    with pytest.raises(pynode.InputError, match=r"cannot be read|AutoSwitch") as raised:
        as_algorithm(text)
    assert message in str(raised.value)


def test_julia_takes_the_text_as_it_is():
    text = "AutoTsit5(Rosenbrock23(linsolve=KLUFactorization()))"
    assert as_algorithm(text, "julia") == pynode.JuliaAlgorithm(text)


def test_a_stiff_problem_is_solved_with_it():
    options = {"rtol": 1e-4, "atol": 1e-6}

    def f(t, y):
        return -1e4 * (y - torch.cos(t))

    y0, t = torch.zeros(1, dtype=torch.float64), [0.0, 1.0]
    sol = pynode.solve(f, y0, t, algorithm="AutoTsit5(Rosenbrock23())", **options)
    other = pynode.solve(f, y0, t, algorithm=AutoTsit5(Rosenbrock23()), **options)
    assert torch.equal(sol.ys, other.ys)
    assert sol.stats.forward.njac > 0
