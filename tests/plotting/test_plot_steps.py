"""Steps and evaluations: what is drawn is what the solve did."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pynode
from pynode.errors import InputError
from pynode.nn import Augment, DataControl, NeuralODE, Stacked, TimeSequential
from pynode.plotting import StepLog, plot_evaluations, plot_steps, record_steps

Y0 = torch.tensor([2.0, 0.0], dtype=torch.float64)


@pytest.fixture
def ax():
    return pytest.importorskip("matplotlib.figure").Figure().add_subplot()


def van_der_pol(t, y):
    return torch.stack([y[1], 10 * (1 - y[0] ** 2) * y[1] - y[0]])


def test_the_log_counts_what_the_statistics_count():
    log = record_steps(van_der_pol, Y0, [0.0, 20.0])
    forward = pynode.solve(van_der_pol, Y0, [0.0, 20.0]).stats.forward
    assert sum(s.accepted for s in log.steps) == forward.accepted
    assert sum(not s.accepted for s in log.steps) == forward.rejected > 0
    assert log.nfe == log.steps[-1].nfe == forward.nfe


def test_step_sizes_are_drawn_at_the_starts_of_the_steps(ax):
    log = record_steps(van_der_pol, Y0, [0.0, 20.0])
    assert plot_steps(log, ax=ax) is ax
    taken = pynode.solve(van_der_pol, Y0, [0.0, 20.0], saveat=pynode.SaveAt(steps=True)).ts.numpy()
    accepted, rejected = ax.lines
    np.testing.assert_allclose(accepted.get_xdata(), taken, rtol=1e-12)
    np.testing.assert_allclose(accepted.get_ydata()[:-1], np.diff(taken), rtol=1e-9)
    assert ax.get_yscale() == "log"
    # A rejected step starts where an accepted, shorter one starts too.
    for t, dt in rejected.get_xydata():
        (i,) = np.flatnonzero(taken == t)
        assert taken[i + 1] - taken[i] < dt


def test_a_solution_saved_at_its_steps_draws_the_same(ax):
    solution = pynode.solve(van_der_pol, Y0, [0.0, 20.0], saveat=pynode.SaveAt(steps=True))
    plot_steps(solution, ax=ax)
    plot_steps(record_steps(van_der_pol, Y0, [0.0, 20.0]), ax=ax)
    np.testing.assert_allclose(ax.lines[0].get_xydata(), ax.lines[1].get_xydata(), rtol=1e-9)


def test_a_solution_that_holds_other_times_is_refused_even_if_their_number_fits(ax):
    same_number = pynode.solve(lambda t, y: -y, Y0, [0.0, 0.1, 0.2, 0.3, 1.0], algorithm=pynode.RK4(steps=4))
    assert same_number.stats.forward.accepted == len(same_number.ts) - 1
    with pytest.raises(InputError, match="record_steps"):
        plot_steps(same_number, ax=ax)


@pytest.mark.parametrize("algorithm", [pynode.RK4(steps=5), pynode.AsynchronousLeapfrog(steps=5)])
def test_fixed_steps_and_backward_time(ax, algorithm):
    log = record_steps(lambda t, y: -y, Y0, [1.0, 0.0], algorithm=algorithm)
    plot_steps(log, ax=ax)
    (line,) = ax.lines
    np.testing.assert_allclose(line.get_xdata(), np.linspace(1, 0, 6), atol=1e-15)
    np.testing.assert_allclose(line.get_ydata(), 0.2)
    assert [s.nfe for s in log.steps] == sorted(s.nfe for s in log.steps)
    assert log.steps[-1].nfe == log.nfe


def test_evaluations_are_those_after_each_attempt(ax):
    log = record_steps(lambda t, y: -y, Y0, [0.0, 1.0], algorithm=pynode.Euler(steps=4))
    plot_evaluations(log, ax=ax)
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [0.25, 0.5, 0.75, 1.0])
    # One at the start of each step; that of the next one is done when a fixed step ends.
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [2, 3, 4, 4])


def test_evaluations_stay_in_place_while_steps_are_rejected(ax):
    log = record_steps(van_der_pol, Y0, [0.0, 20.0])
    plot_evaluations(log, ax=ax)
    t, nfe = ax.lines[0].get_data()
    first = next(i for i, s in enumerate(log.steps) if not s.accepted)
    assert t[first] == t[first - 1]
    assert nfe[first] > nfe[first - 1]
    assert np.all(np.diff(t) >= 0)
    assert t[-1] == 20


def test_a_neural_ode_brings_its_own_options(ax):
    class Field(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor(3.0))

        def forward(self, t, y):
            assert not self.training
            return torch.sin(self.w * y)

    ode = NeuralODE(Field(), (0.0, 2.0), algorithm=pynode.RK4(steps=3))
    y0 = torch.ones(4, 2)
    assert [s.dt for s in record_steps(ode, y0).steps] == pytest.approx([2 / 3] * 3)
    assert [s.dt for s in record_steps(ode, y0, [0.0, 3.0], algorithm=pynode.Euler(steps=2)).steps] == [1.5, 1.5]
    assert ode.f.training
    assert "observer" not in ode.options


def test_a_neural_ode_with_input_condition_and_jumps_is_watched_whole():
    torch.manual_seed(0)
    fields = [TimeSequential(torch.nn.Linear(5, 3), torch.nn.Tanh()) for _ in range(2)]
    ode = NeuralODE(DataControl(Stacked(fields)), input=Augment(1), condition=torch.nn.Identity(), rtol=1e-3)
    x = torch.randn(4, 2)
    log = record_steps(ode, x)
    assert 0.5 in [s.t for s in log.steps]  # the jump was met
    with torch.no_grad():
        assert log.nfe == ode.solve(x).stats.forward.nfe


def test_bad_input_is_explained(ax):
    with pytest.raises(InputError, match="t is missing"):
        record_steps(van_der_pol, Y0)
    with pytest.raises(InputError, match="StepLog or a Solution"):
        plot_steps([0.1], ax=ax)
    with pytest.raises(InputError, match="no step was accepted"):
        plot_steps(StepLog(van_der_pol), ax=ax)
    with pytest.raises(InputError, match="record_steps"):
        plot_evaluations(StepLog(van_der_pol), ax=ax)
