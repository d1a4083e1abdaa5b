"""The driver, with steppers that have no method in them: prescribed error ratios, known answers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from pynode.controllers import IController, PIController
from pynode.layout import Layout
from pynode.native.error_norm import ErrorNorm
from pynode.native.loop import Stepping, initial_step, integrate_adaptive, integrate_fixed
from pynode.native.runge_kutta import RungeKutta
from pynode.native.tableaus import TABLEAUS
from pynode.problem import Field
from pynode.solution import Counts, ReturnCode

both_directions = pytest.mark.parametrize("sign", [1.0, -1.0], ids=["forward", "reversed"])
Y0 = torch.zeros(2, dtype=torch.float64)


class Stub:
    """A stepper for y' = 1 whose error ratios are ``ratio(attempt number, start, end)``, and which logs every call."""

    order = 3
    error_order = 2

    def __init__(self, ratio: Callable[[int, float, float], float] = lambda n, t, t1: 0.5, slope: float = 1.0) -> None:
        self.ratio, self.slope = ratio, slope
        self.log: list[tuple] = []
        self.attempts: list[tuple[float, float, float]] = []
        self.field = Field(lambda t, y: torch.full_like(y, slope), (), Layout(Y0), Counts())

    def begin(self, t, y, derivative=None, jump=0.0):
        self.log.append(("begin", t, jump))

    def derivative(self):
        return torch.full_like(Y0, self.slope)

    def attempt(self, t, h, y, jump=0.0, end=None):
        self.log.append(("attempt", t, end, jump))
        self.attempts.append((t, end, jump))
        return y + self.slope * h

    def error_ratio(self, measure):
        t, t1, _ = self.attempts[-1]
        return self.ratio(len(self.attempts) - 1, t, t1)

    def interpolate(self, thetas, derivative=False):
        raise AssertionError("nothing is saved here")

    def advance(self, t, y):
        self.log.append(("advance", t))

    def sizes(self) -> list[float]:
        return [abs(t1 - t) for t, t1, _ in self.attempts]


class Boundaries:
    """A recorder of accepted boundaries."""

    def __init__(self, t0: float) -> None:
        self.mesh = [t0]

    def accept(self, stepper, t, t1, y, y1):
        assert t == self.mesh[-1]
        self.mesh.append(t1)


class Watcher:
    def __init__(self) -> None:
        self.calls: list[tuple[str, float, float]] = []

    def step(self, t, y, h):
        self.calls.append(("step", t, h))

    def accepted(self, t, y, h):
        self.calls.append(("accepted", t, h))

    def rejected(self, t, y, h):
        self.calls.append(("rejected", t, h))


def run(stepper, sign=1.0, end=1.0, *, start=0.0, observer=None, **options):
    options = {"norm": lambda: ErrorNorm(1e-3, 1e-3), "controller": IController(), "max_steps": 10_000, **options}
    options["stops"] = [sign * x for x in options.get("stops", ())]
    options["jumps"] = frozenset(sign * x for x in options.get("jumps", ()))
    recorder, counts = Boundaries(sign * start), Counts()
    outcome = integrate_adaptive(
        stepper, Y0, sign * start, sign * end, recorder, counts, Stepping(**options), observer=observer
    )
    return outcome, recorder.mesh, counts


# Acceptance and step sizes


@both_directions
def test_steps_that_meet_the_tolerance_are_accepted_and_reach_the_end_exactly(sign):
    stepper = Stub()
    outcome, mesh, counts = run(stepper, sign, dt0=0.3, controller=IController(factormax=1.0))
    assert outcome.retcode is ReturnCode.Success
    assert outcome.t == mesh[-1] == sign
    assert mesh == pytest.approx([sign * x for x in (0.0, 0.3, 0.6, 0.9, 1.0)])
    assert (counts.accepted, counts.rejected) == (4, 0)
    torch.testing.assert_close(outcome.y, Y0 + sign)


@both_directions
def test_a_rejected_step_is_tried_again_from_the_same_place_and_shorter(sign):
    ratios = {0: 4.0, 1: 100.0}
    stepper = Stub(lambda n, t, t1: ratios.get(n, 0.81))
    outcome, mesh, counts = run(stepper, sign, dt0=0.5)
    assert outcome.retcode is ReturnCode.Success
    assert counts.rejected == 2
    assert counts.accepted == len(mesh) - 1 == len(stepper.attempts) - 2
    assert [t for t, _, _ in stepper.attempts[:3]] == [0.0, 0.0, 0.0]
    # 0.9 * ratio^(-1/2): 0.45 after the first; 0.09, so the limit 0.2, after the second.
    assert stepper.sizes()[:3] == pytest.approx([0.5, 0.5 * 0.45, 0.5 * 0.45 * 0.2])
    # An accepted step is followed by one of the same size: 0.9 / 0.9 = 1.
    assert stepper.sizes()[3] == pytest.approx(stepper.sizes()[2])


@both_directions
def test_growth_is_limited(sign):
    stepper = Stub(lambda n, t, t1: 0.0)
    run(stepper, sign, end=1000.0, dt0=1e-3, controller=IController(factormax=5.0))
    sizes = stepper.sizes()[:-1]
    assert sizes == pytest.approx([1e-3 * 5.0**n for n in range(len(sizes))])


@both_directions
def test_no_step_exceeds_dtmax(sign):
    for dtmax in (0.1, 0.3, 0.07):
        for end in (1.0, 1.0005, 0.9999, 0.705):
            stepper = Stub(lambda n, t, t1: 0.0)
            outcome, _, counts = run(stepper, sign, end=end, dtmax=dtmax)
            assert outcome.retcode is ReturnCode.Success
            assert max(stepper.sizes()) <= dtmax * (1 + 1e-9)
            assert counts.accepted <= math.ceil(end / dtmax) + 10  # the first steps grow, none is a sliver


@both_directions
def test_dt0_is_the_first_step(sign):
    stepper = Stub()
    run(stepper, sign, dt0=0.0625)
    assert stepper.sizes()[0] == 0.0625
    assert stepper.field.counts.nfe == 0  # and no evaluation goes into finding one


@both_directions
def test_no_sliver_is_left_before_the_end(sign):
    """Nine steps of 0.111 leave 0.001: the ninth is stretched."""
    stepper = Stub()
    _, mesh, _ = run(stepper, sign, dt0=0.111, controller=IController(factormax=1.0))
    assert len(mesh) == 10
    assert stepper.sizes()[-1] == pytest.approx(0.112)


@both_directions
def test_a_rejected_step_is_never_repeated_unchanged(sign):
    """A controller that hardly shrinks must not find its step stretched back onto the same target."""
    stepper = Stub(lambda n, t, t1: 1.0 + 1e-3 if abs(t1 - t) > 0.95 else 0.5)
    outcome, _, counts = run(stepper, sign, dt0=2.0, controller=IController(safety=1.0))
    assert outcome.retcode is ReturnCode.Success
    assert len(set(stepper.sizes()[: counts.rejected + 1])) == counts.rejected + 1


@both_directions
def test_the_history_reaches_the_controller_and_ends_at_a_jump(sign):
    """PI control: the second step's factor remembers the first ratio; after a jump it does not."""
    ratio = 0.25
    expected_fresh = 0.9 * (1 / ratio) ** (0.7 / 2)
    expected_remembering = expected_fresh * (1 / ratio) ** (-0.4 / 2)
    assert expected_remembering > 1.0
    stepper = Stub(lambda n, t, t1: ratio)
    run(stepper, sign, end=1e6, dt0=1.0, controller=PIController(), jumps=[1.0 + expected_fresh])
    sizes = stepper.sizes()
    assert sizes[1] / sizes[0] == pytest.approx(expected_fresh)
    assert sizes[2] / sizes[1] == pytest.approx(expected_remembering)
    assert sizes[3] / sizes[2] == pytest.approx(expected_fresh)


# Targets


@both_directions
def test_stops_are_met_exactly_and_cost_no_step_size(sign):
    stops = [0.7, 1e-9, 0.1, 0.1 + 1e-12]
    stepper = Stub()
    outcome, mesh, _ = run(stepper, sign, end=3.0, dt0=0.5, stops=stops, controller=IController(factormax=1.0))
    assert outcome.retcode is ReturnCode.Success
    assert {sign * x for x in stops} <= set(mesh)
    assert all((b - a) * sign > 0 for a, b in itertools.pairwise(mesh))
    after = mesh.index(sign * 0.7)
    assert abs(mesh[after + 1] - mesh[after]) == pytest.approx(0.5)  # not the 1e-12 of a step cut short


@both_directions
def test_stops_outside_the_span_and_repeated_ones_do_not_matter(sign):
    stepper = Stub()
    _, mesh, _ = run(
        stepper, sign, dt0=0.25, stops=[-1.0, 0.0, 0.5, 0.5, 1.0, 2.0], controller=IController(factormax=1.0)
    )
    assert mesh == [sign * x for x in (0.0, 0.25, 0.5, 0.75, 1.0)]


@both_directions
def test_a_jump_is_approached_from_one_side_and_left_on_the_other(sign):
    stepper = Stub()
    _, mesh, _ = run(stepper, sign, dt0=0.5, jumps=[0.4], stops=[0.6])
    ahead = sign * math.inf
    at = sign * 0.4
    index = stepper.log.index(("attempt", 0.0 * sign, at, -ahead))
    assert stepper.log[index + 1] == ("begin", at, ahead)  # not advance: the old derivative is of the other side
    assert [entry for entry in stepper.log if entry[0] == "begin"] == [("begin", 0.0, 0.0), ("begin", at, ahead)]
    assert [jump for _, end, jump in stepper.attempts if end != at] == [0.0] * (len(stepper.attempts) - 1)
    assert at in mesh


@both_directions
def test_jumps_at_the_ends(sign):
    stepper = Stub()
    run(stepper, sign, dt0=10.0, jumps=[0.0, 1.0])
    assert stepper.log == [("begin", 0.0, sign * math.inf), ("attempt", 0.0, sign, -sign * math.inf)]


# Endings


@both_directions
@pytest.mark.parametrize("limit", [1, 2, 5])
def test_max_steps_counts_attempts(sign, limit):
    stepper = Stub(lambda n, t, t1: 4.0 if n % 2 else 0.5)
    outcome, mesh, counts = run(stepper, sign, dt0=1e-3, max_steps=limit)
    assert outcome.retcode is ReturnCode.MaxIters
    assert len(stepper.attempts) == limit == counts.accepted + counts.rejected
    assert outcome.t == mesh[-1]
    assert str(limit) in outcome.detail


@both_directions
def test_reaching_the_end_with_the_last_step_is_success(sign):
    outcome, _, counts = run(Stub(), sign, dt0=0.25, max_steps=4, controller=IController(factormax=1.0))
    assert outcome.retcode is ReturnCode.Success
    assert counts.accepted == 4


@both_directions
def test_below_dtmin_the_solve_ends(sign):
    stepper = Stub(lambda n, t, t1: 2.0 if t1 * sign > 0.5 else 0.5)
    outcome, _, _ = run(stepper, sign, dt0=0.1, dtmin=1e-3)
    assert outcome.retcode is ReturnCode.DtLessThanMin
    assert abs(outcome.t) <= 0.5
    assert min(stepper.sizes()) >= 1e-3
    assert "dtmin = 0.001" in outcome.detail


@both_directions
def test_the_first_step_is_raised_to_dtmin(sign):
    """Neither the automatic first step nor a small dt0 is a reason to fail."""
    for options in ({}, {"dt0": 1e-6}):
        stepper = Stub()
        outcome, _, _ = run(stepper, sign, dtmin=0.125, **options)
        assert outcome.retcode is ReturnCode.Success
        assert stepper.sizes()[0] == 0.125


@both_directions
def test_a_target_may_be_nearer_than_dtmin(sign):
    outcome, mesh, _ = run(Stub(), sign, dt0=0.25, dtmin=0.25, stops=[0.5, 0.5 + 1e-6])
    assert outcome.retcode is ReturnCode.Success
    assert sign * (0.5 + 1e-6) in mesh


@both_directions
@pytest.mark.parametrize("start", [1.0, 1e6, -1e6])
def test_underflow_ends_at_the_spacing_of_times(sign, start):
    stepper = Stub(lambda n, t, t1: 2.0)
    outcome, _, counts = run(stepper, sign, start=start, end=start + 1.0, dt0=0.1)
    assert outcome.retcode is ReturnCode.DtLessThanMin
    assert counts.accepted == 0
    assert min(stepper.sizes()) >= 2.0 * math.ulp(start)  # sizes are measured on rounded times
    assert "spacing" in outcome.detail


@both_directions
@pytest.mark.parametrize("ratio", [math.nan, math.inf])
def test_a_field_that_stays_non_finite_is_unstable(sign, ratio):
    stepper = Stub(lambda n, t, t1: ratio if t1 * sign > 0.5 else 0.5)
    outcome, _, counts = run(stepper, sign, dt0=0.1)
    assert outcome.retcode is ReturnCode.Unstable
    assert 0.4 < abs(outcome.t) <= 0.5
    assert counts.rejected > 10


@both_directions
def test_a_single_nan_is_only_a_rejection(sign):
    stepper = Stub(lambda n, t, t1: math.nan if n == 1 else 0.81)
    outcome, _, counts = run(stepper, sign, dt0=0.25)
    assert outcome.retcode is ReturnCode.Success
    assert counts.rejected == 1
    assert stepper.sizes()[2] == pytest.approx(0.25 * 0.2)


@both_directions
@pytest.mark.parametrize("slope", [math.nan, math.inf])
def test_a_non_finite_derivative_at_the_start_is_an_initial_failure(sign, slope):
    stepper = Stub(slope=slope)
    outcome, mesh, _ = run(stepper, sign)
    assert outcome.retcode is ReturnCode.InitialFailure
    assert outcome.t == 0.0
    assert stepper.attempts == []
    assert mesh == [0.0]


def test_force_dtmin_goes_on_with_the_smallest_step():
    stepper = Stub(lambda n, t, t1: 2.0)
    outcome, _, counts = run(stepper, 1.0, dt0=0.1, dtmin=0.01, force_dtmin=True)
    assert outcome.retcode is ReturnCode.Success
    assert counts.accepted == pytest.approx(100, abs=2)


# Observers


@both_directions
def test_the_observer_sees_every_attempt(sign):
    stepper = Stub(lambda n, t, t1: 4.0 if n == 1 else 0.5)
    watcher = Watcher()
    _, _, counts = run(stepper, sign, dt0=0.3, observer=watcher)
    kinds = [kind for kind, _, _ in watcher.calls]
    assert kinds[:6] == ["step", "accepted", "step", "rejected", "step", "accepted"]
    assert kinds.count("step") == len(stepper.attempts)
    assert (kinds.count("accepted"), kinds.count("rejected")) == (counts.accepted, counts.rejected)
    assert all(h * sign > 0 for _, _, h in watcher.calls)


# The first step


def _initial(rtol, f0, f1, y0=1.0, span=1.0, norm=None):
    """The rule's choice for a field that is f0 at the start and f1 elsewhere."""
    calls = []

    def f(t, y):
        calls.append(t.item())
        return torch.full_like(y, f0 if t == 0 else f1)

    y = torch.full((1,), y0, dtype=torch.float64)
    stepper = RungeKutta(TABLEAUS["Tsit5"], Field(f, (), Layout(y), Counts()))
    stepper.begin(0.0, y)
    measure = ErrorNorm(rtol, rtol, norm)
    measure.start(y)
    return initial_step(stepper, measure, 0.0, y, span), calls


@both_directions
def test_hairers_rule(sign):
    """By hand: scale = rtol (1 + 1); d0 = 1/scale, d1 = 2/scale, h0 = 0.01/2; d2 = 1/(scale h0)."""
    scale = 2e-4
    size, calls = _initial(1e-4, 2.0, 3.0, span=sign)
    h0 = 0.005
    h1 = (0.01 / (1.0 / scale / h0)) ** (1 / 5)
    assert size == pytest.approx(min(100 * h0, h1))
    assert calls == [0.0, pytest.approx(sign * h0)]


@pytest.mark.parametrize(
    ("f0", "f1"), [(0.0, 0.0), (1e300, 1e300), (1.0, math.nan), (1.0, math.inf), (1e-300, 1e-300), (0.0, 1e200)]
)
def test_the_first_step_is_positive_and_within_the_span_for_any_field(f0, f1):
    for y0 in (0.0, 1.0, 1e-200, 1e200):
        size, _ = _initial(1e-6, f0, f1, y0=y0, span=0.25)
        assert 0.0 < size <= 0.25


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_the_first_step_is_positive_for_any_norm(value):
    size, _ = _initial(1e-6, 1.0, 2.0, span=0.25, norm=lambda error: value)
    assert 0.0 < size <= 0.25


# Fixed steps


@both_directions
def test_fixed_steps_follow_the_mesh(sign):
    stepper, counts, watcher = Stub(), Counts(), Watcher()
    mesh = [sign * x for x in (0.0, 0.1, 0.5, 2.0)]
    recorder = Boundaries(0.0)
    outcome = integrate_fixed(stepper, Y0, mesh, recorder, counts, max_steps=3, observer=watcher)
    assert outcome.retcode is ReturnCode.Success
    assert recorder.mesh == mesh
    assert [(t, t1) for t, t1, _ in stepper.attempts] == list(itertools.pairwise(mesh))
    assert (counts.accepted, counts.rejected) == (3, 0)
    assert [entry[0] for entry in stepper.log] == ["begin", "attempt", "advance", "attempt", "advance", "attempt"]
    assert [kind for kind, _, _ in watcher.calls] == ["step"] * 3


@both_directions
def test_fixed_steps_nudge_at_jumps_or_everywhere(sign):
    mesh = [sign * x for x in (0.0, 1.0, 2.0, 3.0)]
    ahead = sign * math.inf
    stepper = Stub()
    integrate_fixed(stepper, Y0, mesh, Boundaries(0.0), Counts(), max_steps=3, jumps=frozenset({mesh[1]}))
    assert [entry[-1] for entry in stepper.log if entry[0] == "begin"] == [0.0, ahead]
    assert [jump for _, _, jump in stepper.attempts] == [-ahead, 0.0, 0.0]
    stepper = Stub()
    integrate_fixed(stepper, Y0, mesh, Boundaries(0.0), Counts(), max_steps=3, perturb=True)
    assert [entry[-1] for entry in stepper.log if entry[0] == "begin"] == [ahead] * 3
    assert [jump for _, _, jump in stepper.attempts] == [-ahead] * 3


def test_fixed_steps_are_limited_before_they_begin():
    stepper = Stub()
    outcome = integrate_fixed(stepper, Y0, [0.0, 1.0, 2.0], Boundaries(0.0), Counts(), max_steps=1)
    assert outcome.retcode is ReturnCode.MaxIters
    assert stepper.log == []


def test_fixed_steps_notice_non_finite_values():
    outcome = integrate_fixed(Stub(slope=math.nan), Y0, [0.0, 1.0], Boundaries(0.0), Counts(), max_steps=1)
    assert outcome.retcode is ReturnCode.InitialFailure
    stepper = Stub()
    stepper.attempt = lambda t, h, y, jump=0.0, end=None: y * math.nan
    outcome = integrate_fixed(stepper, Y0, [0.0, 1.0], Boundaries(0.0), Counts(), max_steps=1)
    assert outcome.retcode is ReturnCode.Unstable


# The norm


def test_error_norm_is_the_rms_of_the_scaled_error():
    norm = ErrorNorm(0.1, torch.tensor([1.0, 0.0], dtype=torch.float64))
    norm.start(torch.tensor([-10.0, 2.0], dtype=torch.float64))
    norm.between(torch.tensor([5.0, -30.0], dtype=torch.float64))
    error = torch.tensor([4.0, -3.0], dtype=torch.float64)
    assert norm(error) == pytest.approx(math.sqrt(((4.0 / 2.0) ** 2 + (3.0 / 3.0) ** 2) / 2.0))
    assert norm(error, -2.0) == pytest.approx(2.0 * norm(error))
    norm.accept()
    norm.between(torch.zeros(2, dtype=torch.float64))
    assert norm(error) == pytest.approx(math.sqrt(((4.0 / 1.5) ** 2 + 1.0) / 2.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tolerances_keep_the_precision_of_the_state(dtype):
    """Not that of torch's default dtype, in which 1e-50 is zero."""
    norm = ErrorNorm(0.0, 1e-30)
    norm.start(torch.zeros(1, dtype=dtype))
    assert norm(torch.full((1,), 1e-30, dtype=dtype)) == pytest.approx(1.0, rel=1e-6)
    if dtype == torch.float64:
        norm = ErrorNorm(1e-10, 1e-50)
        norm.start(torch.ones(1, dtype=dtype))
        assert norm(torch.full((1,), 1e-10, dtype=dtype)) == 1.0


@pytest.mark.parametrize("atol", [0.0, torch.tensor([0.0, 1e-6]), 1e-60])
def test_a_component_at_zero_under_relative_control_is_no_nan(atol):
    norm = ErrorNorm(1e-3, atol)
    norm.start(torch.zeros(2))
    assert norm(torch.zeros(2)) == 0.0
    assert norm(torch.ones(2)) > 1e3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_squares_that_overflow_leave_a_finite_norm(dtype):
    big = torch.finfo(dtype).max / 4.0
    norm = ErrorNorm(0.0, 1.0)
    norm.start(torch.zeros(3, dtype=dtype))
    assert norm(torch.full((3,), big, dtype=dtype)) == pytest.approx(big, rel=1e-6)
    assert norm(torch.full((3,), math.inf, dtype=dtype)) == math.inf
    assert math.isnan(norm(torch.tensor([1.0, math.nan, math.inf], dtype=dtype)))
