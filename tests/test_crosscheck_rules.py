"""What a cross-check says where steps are too coarse, derivatives wrong, or arguments unusable."""

from __future__ import annotations

import math

import pytest
import torch

import pynode
from pynode.crosscheck.report import AGREES, DISAGREES, NOT_RESOLVED
from pynode.errors import InputError
from pynode.native import backend as native
from pynode.problems import PROBLEMS

QUICK = {"oracles": (), "directions": 1, "repeats": 1, "algorithms": ["tsit5"], "rtol": 1e-5, "atol": 1e-7}


def swing(t, y):
    return torch.stack((y[1], -torch.sin(y[0])))


def check(f=swing, **options):
    y0 = torch.tensor([1.0, 0.5], dtype=torch.float64)
    return pynode.crosscheck(f, y0, [0.0, 0.5, 1.0], **{**QUICK, **options})


class _TanhOnePercentOff(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return 1.01 * grad * (1 - y**2)


class Layered(torch.nn.Module):
    """Only what lies before the wrong function has a wrong gradient."""

    def __init__(self):
        super().__init__()
        self.after = torch.nn.Parameter(torch.tensor([0.7, -0.4], dtype=torch.float64))
        self.before = torch.nn.Parameter(torch.tensor([0.3, 0.5], dtype=torch.float64))

    def forward(self, t, y):
        return self.after * _TanhOnePercentOff.apply(self.before) + torch.cos(t)


def test_a_wrong_derivative_is_one_disagreement_and_names_the_quantity():
    report = check(Layered(), sensealgs=["direct"], directions=3)
    (found,) = report.disagreements
    assert found.culprit.startswith("the derivative of f itself")
    # y0 comes first, then ``after``: their gradients are right.
    assert found.quantity == "parameters.before"
    assert "the gradient of parameters.before is wrong" in str(found)
    assert sum(not x.agrees for x in report.differences) == 3
    assert not report.ok


def test_steps_too_coarse_for_the_solution_are_not_resolved():
    # Half a turn a step: the solution itself is nonsense, and so is what it says about a gradient.
    def turning(t, y):
        return 20.0 * torch.stack((y[1], -y[0]))

    report = check(turning, algorithms=[pynode.Heun(steps=4)], sensealgs=["direct", "checkpointed", "interpolating"])
    assert {row.verdict for row in report.rows} == {NOT_RESOLVED}
    assert not report.disagreements
    assert not report.ok  # nothing was compared
    assert "when its steps are halved" in str(report)


def test_a_discrete_adjoint_is_held_against_the_tape_where_the_steps_are_too_coarse(monkeypatch):
    true = native._PULL_BACKS[pynode.CheckpointedAdjoint]

    def planted(record, query, cotangents):
        found = true(record, query, cotangents)
        found.y0 = found.y0 * 1.01
        return found

    monkeypatch.setitem(native._PULL_BACKS, pynode.CheckpointedAdjoint, planted)
    options = {"algorithms": [pynode.Heun(steps=4)], "sensealgs": ["direct", "checkpointed"]}
    report = check(lambda t, y: 20.0 * torch.stack((y[1], -y[0])), **options)
    assert [row.verdict for row in report.rows] == [NOT_RESOLVED, DISAGREES]
    assert report.disagreements[0].quantity == "y0"


def test_remedies_of_unstable_steps_that_the_solution_does_not_show():
    # Two smooth waves: nothing in the solution tells that the steps are unstable for all others.
    heat = PROBLEMS["heat"].build()
    x = torch.arange(1, 21, dtype=torch.float64) / 21
    y0 = (torch.sin(math.pi * x) + 0.5 * torch.sin(2 * math.pi * x)).requires_grad_()
    true = heat.exact(y0)
    (expected,) = torch.autograd.grad(heat.loss(true), y0)

    def errors(**options):
        ys = pynode.solve(heat.field, y0, heat.t, rtol=1e-6, atol=1e-8, **options).ys
        (found,) = torch.autograd.grad(heat.loss(ys), y0)
        return ((ys - true).norm() / true.norm()).item(), ((found - expected).norm() / expected.norm()).item()

    solution, gradient = errors()
    assert solution < 1e-5
    assert gradient > 1e3
    # Eigenvalues reach 0.05 * 4 * 21**2 = 88, and Tsit5 is stable to 3.3 on the negative axis.
    assert errors(dtmax=0.03)[1] < 1e-4
    assert errors(sensealg=pynode.InterpolatingAdjoint())[1] < 1e-5
    assert errors(sensealg=pynode.ForwardSensitivity())[1] < 1e-5


def test_an_algorithm_added_for_one_sensealg_runs_for_it_and_the_tape_only():
    report = check(algorithms=None, sensealgs=["direct", "gauss", "reversible"])
    added = [row for row in report.rows if row.algorithm.startswith("ReversibleHeun")]
    assert [row.sensealg for row in added] == ["DirectAdjoint", "ReversibleAdjoint"]


def test_progress_counts_every_measured_row():
    seen = []
    report = check(sensealgs=["direct", "reversible"], progress=lambda *x: seen.append(x))
    assert [(number, count) for _, number, count in seen] == [(1, 1)]  # Tsit5 does not offer the other
    assert seen[0][0] is report.rows[0]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda ys: ys, r"tensor of shape \(3, 2\)"),
        (lambda ys: 3.0, "a float"),
        (lambda ys: torch.complex(ys, ys).sum(), "complex128"),
    ],
    ids=["vector", "float", "complex"],
)
def test_a_loss_must_be_a_real_scalar(loss, message):
    with pytest.raises(InputError, match=message):
        check(loss=loss)


def test_an_unknown_oracle_is_found_before_anything_is_solved():
    def never(ys):
        raise AssertionError("solved")

    with pytest.raises(InputError, match="unknown oracle 'sicpy'"):
        check(lambda t, y: -y, loss=never, oracles=["sicpy"])


def test_diffrax_in_float32():
    pytest.importorskip("diffrax")
    problem = PROBLEMS["harmonic"].build(dtype=torch.float32)
    report = pynode.crosscheck(problem, **{**QUICK, "sensealgs": ["checkpointed"], "oracles": ["diffrax"]})
    assert [row.verdict for row in report.rows] == [AGREES, AGREES], str(report)
