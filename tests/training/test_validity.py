"""validity: verdicts, critical steps and distances that are known in closed form."""

from __future__ import annotations

import json
import math

import pytest
import torch
from decaying import SAME_SIDE, X, decay

import pynode
from pynode import DP5, RK4, Euler, Fehlberg2
from pynode.errors import InputError
from pynode.nn import NeuralODE
from pynode.training import validity


def test_one_euler_step_that_folds_the_line_is_a_discretisation():
    report = validity(decay(Euler(steps=1)), [(X, 1 - SAME_SIDE)])
    assert report.verdict == "discretisation"
    assert report.own.metric == 1.0
    assert report.reference.metric == 0.0
    # 1 - 2h keeps the sign below h = 1/2; there it is 0.
    assert report.critical_bracket == (0.25, 0.5)
    state = report.states[""]
    assert state.crossings == 1.0
    assert state.reference_crossings == 0.0
    exact = math.exp(-2)
    assert state.discrepancy == pytest.approx((1 + exact) / (1 - exact), rel=1e-6)


def test_steps_that_follow_the_flow_are_a_flow():
    report = validity(decay(Euler(steps=8)), [(X, SAME_SIDE)])
    assert report.verdict == "flow"
    assert report.critical_bracket == (0.25, 0.5)
    assert report.states[""].crossings == 0.0
    end = (1 - 2 / 8) ** 8
    assert report.states[""].discrepancy == pytest.approx((math.exp(-2) - end) / (1 - math.exp(-2)), rel=1e-5)


def test_coarser_solvers_do_not_decide():
    """At half the steps, 3, Euler keeps the sign; at one step it does not: coarser, so that the verdict stands."""
    report = validity(decay(Euler(steps=4)), [(X, SAME_SIDE)], factors=(0.25, 1))
    one = next(row for row in report.rows if row.solver == "Euler" and row.resolution == 1)
    assert one.gap == 1.0
    assert not one.exact
    assert report.verdict == "flow"


def test_every_row_costs_what_its_solver_takes():
    report = validity(decay(Euler(steps=4)), [(X, SAME_SIDE)])
    stages = {"Euler": 1, "Midpoint": 2, "RK4": 4}
    for row in [report.own, *report.rows]:
        assert row.nfe == pytest.approx(stages[row.solver] / row.resolution)


@pytest.mark.parametrize(("steps", "verdict"), [(1, "discretisation"), (64, "flow")])
def test_a_loss_is_compared_relatively(steps, verdict):
    """Errors of the training's solver itself are the metric: 1.5 % at 64 steps, all of it at 1."""
    target = X * math.exp(-2) + 1.0
    report = validity(decay(Euler(steps=steps)), [(X, target)], "mse")
    assert report.relative
    expected = (X * (1 - 2 / steps) ** steps - target).pow(2).mean()
    assert report.own.metric == pytest.approx(float(expected), rel=1e-12)
    assert report.verdict == verdict


@pytest.mark.parametrize(
    ("options", "verdict"), [({"rtol": 1e6, "atol": 1e6, "dt0": 1.0}, "discretisation"), ({}, "flow")]
)
def test_tolerances(options, verdict):
    """One step of Fehlberg2 at z = -6 multiplies by 1 + z + z^2/2 + 255 z^3/2^18 and not by exp(z)."""
    report = validity(decay(Fehlberg2(), rate=6.0, **options), [(X, X)], "mse")
    assert report.verdict == verdict
    if options:
        factor = 1 - 6 + 18 - 216 * 255 / 2**18
        assert report.own.metric == pytest.approx(float(((factor - 1) * X).pow(2).mean()), rel=1e-12)


def test_the_reference_is_tighter_than_the_training():
    report = validity(decay(DP5(), rtol=1e-7, atol=1e-7), [(X, SAME_SIDE)])
    assert report.reference.resolution == pytest.approx(1e-9)
    assert report.own.kind == "rtol"


def test_the_model_is_left_as_it_was():
    ode = decay(Euler(steps=2), sensealg=pynode.DirectAdjoint())
    calls = []
    ode.register_solve_hook(lambda *given: calls.append(given))
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), ode)
    model[0].eval()
    before = {key: value for key, value in vars(ode).items() if not key.startswith("_")}
    validity(model, [(X, SAME_SIDE)])
    assert {key: value for key, value in vars(ode).items() if not key.startswith("_")} == before
    assert (model.training, model[0].training, ode.training) == (True, False, True)
    assert not calls
    model(X)
    assert len(calls) == 1


def test_several_equations_in_a_model_are_each_compared():
    model = torch.nn.Sequential(decay(Euler(steps=1)), decay(Euler(steps=2), rate=0.1))
    report = validity(model, [(X, SAME_SIDE)])
    assert list(report.states) == ["0", "1"]
    assert report.states["0"].discrepancy > 1
    # (1 - 0.05)^2 against exp(-0.1)
    assert report.states["1"].discrepancy == pytest.approx((math.exp(-0.1) - 0.9025) / (1 - math.exp(-0.1)), rel=1e-4)
    assert report.own.nfe == 3


def test_a_flow_that_explodes_is_not_that_of_its_first_step():
    ode = NeuralODE(lambda t, y: y**2, (0.0, 1.5), algorithm=Euler(steps=1), max_steps=2000)
    report = validity(ode, [(X.abs() + 0.5, X)], "mse")
    assert report.verdict == "discretisation"
    assert json.dumps(report.as_json())


def test_margin_is_two_standard_errors_of_the_paired_difference():
    report = validity(decay(Euler(steps=2)), [(X, SAME_SIDE)])
    row = next(row for row in report.rows if row.solver == "Euler" and row.resolution == 0.25)
    # Of 22 samples the 11 on the right are lost at 2 steps, where all are 0.
    difference = torch.cat([torch.zeros(11), torch.ones(11)])
    assert row.gap == 0.5
    assert row.margin == pytest.approx(float(2 * difference.std() / 22**0.5))


def test_files_and_picture(tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    report = validity(decay(Euler(steps=2)), (X, SAME_SIDE))
    report.to_json(tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["verdict"] == report.verdict
    assert content["critical_resolution"] == pytest.approx(1 / 3)
    assert [row["metric"] for row in content["rows"]] == [row.metric for row in report.rows]
    from matplotlib.figure import Figure

    axes = report.plot(Figure().add_subplot())
    drawn = {line.get_label(): line for line in axes.get_lines()}
    at, metrics = drawn["Euler"].get_data()
    assert dict(zip(at, metrics, strict=True))[0.5] == report.own.metric
    report.save_plot(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "discretisation" in str(report)
    assert "as trained" in str(report)


def rings(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    low = torch.tensor([0.4, 1.0, 1.6])[torch.arange(count) % 3]
    radius = low + 0.2 * torch.rand(count, generator=generator)
    direction = torch.nn.functional.normalize(torch.randn(count, 2, generator=generator), dim=1)
    return radius[:, None] * direction, (low == 1.0).long()


def test_a_network_trained_with_one_euler_step_on_rings():
    """What Ott et al. found: it separates the rings, and no other solver does with the same field."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))

        def forward(self, t, y):
            return self.layers(y)

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    (x, y), test = rings(600, generator), rings(600, generator)
    model = NeuralODE(Net(), output=torch.nn.Linear(2, 2), algorithm=Euler(steps=1), sensealg=pynode.DirectAdjoint())
    optimiser = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(200):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    report = validity(model, [test])
    assert report.own.metric > 0.95
    assert report.verdict == "discretisation"
    assert report.states[""].crossings > report.states[""].reference_crossings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": torch.nn.Linear(1, 1)}, "no pynode.nn.NeuralODE"),
        ({"data": []}, "data is empty"),
        ({"data": 3}, "data is a int"),
        ({"metric": "f1"}, "metric is 'f1'"),
        ({"metric": lambda o, t: math.nan}, "metric is nan"),
        ({"metric": lambda o, t: "good"}, "returned a str"),
        ({"threshold": 0.0}, "threshold = 0"),
        ({"reference": RK4(steps=3)}, "has fixed steps"),
        ({"model": torch.nn.Sequential(decay(Euler()), decay(DP5()))}, "mixes"),
    ],
)
def test_bad_input_is_explained(change, message):
    given = {"model": decay(Euler(steps=2)), "data": [(X, SAME_SIDE)], **change}
    with pytest.raises(InputError, match=message):
        validity(given.pop("model"), given.pop("data"), **given)
