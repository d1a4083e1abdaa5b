"""The gradients experiment: its arithmetic, and that every part runs."""

from __future__ import annotations

import argparse
import math

import pytest
import torch

import pynode
from pynode.bench import gradients, seminorm, work_precision
from pynode.bench.seminorm import CONTROLS, FULL, GAUSS, SEMI, SENSEALGS, TOLERANCES, Gradient


def test_the_reference_is_the_gradient() -> None:
    task = seminorm.task(1.0, 0.2, seed=0)
    exact = seminorm.reference(task)
    assert sum(x.numel() for x in exact[1:]) == 13_456
    y0 = task.y0.clone()
    direction = torch.randn(y0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss(distance: float) -> float:
        with torch.no_grad():
            sol = pynode.solve(task.field, y0 + distance * direction, task.t, rtol=1e-12, atol=1e-12)
            return task.loss(sol.ys).item()

    # Second order in 1e-4, and rounding 1e-12 over it.
    assert (loss(1e-4) - loss(-1e-4)) / 2e-4 == pytest.approx((exact[0] * direction).sum().item(), rel=1e-6)
    one = seminorm.measured(task, exact, pynode.GaussAdjoint(), 1e-6, 1e-8, pynode.DP5())
    assert 0.0 < one.error < 1e-4
    assert one.nfe > 0


def test_work_at_equal_error_is_read_off_the_power_law() -> None:
    # Ours costs error**-0.2, the other 3 times as much at the same error.
    control = CONTROLS[0]
    found = {}
    for rtol, _ in TOLERANCES:
        for name, factor in ((GAUSS, 1.0), (SEMI, 3.0), (FULL, 6.0)):
            error = rtol * (0.5 if name == GAUSS else 1.0)
            work = round(1e6 * factor * error**-0.2)
            found[control, name, rtol] = [Gradient(error, 1, work, work, 1e-6 * work)]
    assert seminorm.at_equal_error(found, control, GAUSS, SEMI, "nfe") == pytest.approx(1 / 3, rel=1e-5)
    assert seminorm.at_equal_error(found, control, GAUSS, FULL, "seconds") == pytest.approx(1 / 6, rel=1e-5)


def test_claims_hold_what_was_promised_against_what_was_measured() -> None:
    def claims(semi: int, error: float) -> dict[str, bool | None]:
        found = {}
        for control in CONTROLS:
            for k, (rtol, _) in enumerate(TOLERANCES):
                for name in SENSEALGS:
                    nfe = 100 * (k + 1) if name == FULL else semi * (k + 1)
                    own = rtol * (error if name == SEMI else 1.0)
                    found[control, name, rtol] = [Gradient(own, 1, nfe, nfe, 1e-3 * nfe)]
        return {claim.text: claim.met for claim in seminorm._claims(found)}

    good, bad = claims(50, 1.5), claims(70, 2.5)
    assert good["the seminorm saves 50 % of backward evaluations (median: 40)"] is True
    assert good["at 1.50 times the full norm's gradient error (median: 2)"] is True
    assert bad["the seminorm saves 30 % of backward evaluations (median: 40)"] is False
    assert bad["at 2.50 times the full norm's gradient error (median: 2)"] is False


def test_work_precision_on_one_problem() -> None:
    tables, rows = work_precision.measure(("linear",), (1e-3, 1e-6))
    assert len(tables) == 2
    for name in work_precision.SENSEALGS:
        loose, tight = (rows["linear", name, tolerance] for tolerance in (1e-3, 1e-6))
        assert loose is not None
        assert tight is not None
        assert tight.error < 1e-4
        assert math.log10(loose.error / tight.error) > 1.5  # three decades of tolerance
    direct = rows["linear", "CheckpointedAdjoint", 1e-6]
    assert direct is not None
    assert direct.nvjp == direct.nfe  # every repeated evaluation is pulled back


def test_speed_reports_the_two_best_at_no_larger_error() -> None:
    pytest.importorskip("torchdiffeq")
    contestants = {
        name: solver
        for name, solver in gradients.solvers(eager=True).items()
        if name in (gradients.ADJOINT, gradients.BACKPROP, "CheckpointedAdjoint", "DirectAdjoint")
    }
    table, claims, data = gradients.speed(1, 1, contestants)
    assert [row[0] for row in table.rows] == list(contestants)
    assert {"CheckpointedAdjoint", "DirectAdjoint"} == set(data) - {gradients.ADJOINT, gradients.BACKPROP}
    (claim,) = claims
    assert claim.met is (claim.value >= 15.0)


def test_only_the_parts_asked_for_run() -> None:
    parser = argparse.ArgumentParser()
    gradients.add_arguments(parser)
    assert not gradients.run(parser.parse_args(["--part", "work", "--quick"])).claims
