"""What a solve and its gradient cost beside the bare field, next to torchdiffeq, at equal tolerances.

Everything runs in one process on one thread, in alternating slots. Evaluations are counted by hooks on the field in
separate, untimed runs (in a compiled step, by pynode's own statistics). Errors are relative, against float64 at 1e-12,
and root mean squares over several draws of field and initial state, because near float32's precision a single one is
luck.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

import pynode
from pynode.bench import Claim, Report, Table
from pynode.bench.fields import CASES, Case
from pynode.bench.timing import Timing, alternate

SUMMARY = "cost beside the bare field and beside torchdiffeq"

BARE = "bare f"


class Solver(Protocol):
    """A way from ``y0`` to ``y(t[-1])``."""

    def __call__(self, case: Case, y0: Tensor) -> Tensor: ...

    def steps(self, case: Case) -> tuple[int, int]:
        """Accepted and rejected steps of the forward solve."""
        ...


class Pynode:
    """``pynode.solve`` with some of its options."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        #: Hooks on the field would be compiled with it: such a solve is counted by its own statistics.
        self.compiled = bool(options.get("compile"))

    def solution(self, case: Case, y0: Tensor) -> pynode.Solution:
        return pynode.solve(case.field, y0, case.t, rtol=case.rtol, atol=case.atol, **self.options)

    def __call__(self, case: Case, y0: Tensor) -> Tensor:
        final: Tensor = self.solution(case, y0).ys[-1]
        return final

    def steps(self, case: Case) -> tuple[int, int]:
        counts = self.solution(case, case.y0).stats.forward
        return counts.accepted, counts.rejected


class TorchDiffEq:
    """``torchdiffeq.odeint`` or ``odeint_adjoint``."""

    def __init__(self, function: str = "odeint", method: str = "dopri5", **options: Any) -> None:
        self.function, self.method, self.options = function, method, options

    def __call__(self, case: Case, y0: Tensor) -> Tensor:
        function = getattr(_torchdiffeq(), self.function)
        values: Tensor = function(
            case.field, y0, case.t, rtol=case.rtol, atol=case.atol, method=self.method, **self.options
        )
        return values[-1]

    def steps(self, case: Case) -> tuple[int, int]:
        counts = {"accept": 0, "reject": 0}

        def count(kind: str, *_: Any) -> None:
            counts[kind] += 1

        # torchdiffeq finds its callbacks as attributes of the field.
        for kind in counts:
            setattr(case.field, f"callback_{kind}_step", functools.partial(count, kind))
        try:
            with torch.no_grad():
                self(case, case.y0)
        finally:
            for kind in counts:
                delattr(case.field, f"callback_{kind}_step")
        return counts["accept"], counts["reject"]


def _torchdiffeq() -> Any:
    try:
        import torchdiffeq
    except ImportError as error:
        raise ImportError("this experiment needs torchdiffeq: pip install 'pynode[bench]'") from error
    return torchdiffeq


FORWARD: dict[str, Solver] = {
    "torchdiffeq dopri5": TorchDiffEq(),
    "pynode DP5": Pynode(algorithm=pynode.DP5()),
    "pynode Tsit5": Pynode(algorithm=pynode.Tsit5()),
}

GRADIENT: dict[str, Solver] = {
    "torchdiffeq odeint_adjoint": TorchDiffEq("odeint_adjoint"),
    "torchdiffeq odeint_adjoint, seminorm": TorchDiffEq("odeint_adjoint", adjoint_options={"norm": "seminorm"}),
    "torchdiffeq odeint, backprop": TorchDiffEq(),
    "pynode DP5 default": Pynode(algorithm=pynode.DP5()),
    "pynode DP5 DirectAdjoint": Pynode(algorithm=pynode.DP5(), sensealg=pynode.DirectAdjoint()),
    "pynode DP5 BacksolveAdjoint": Pynode(algorithm=pynode.DP5(), sensealg=pynode.BacksolveAdjoint()),
    "pynode Tsit5 default": Pynode(algorithm=pynode.Tsit5()),
}

PEER, OURS = "torchdiffeq dopri5", "pynode DP5"
ADJOINT, BACKPROP, DEFAULT = "torchdiffeq odeint_adjoint", "torchdiffeq odeint, backprop", "pynode DP5 default"

#: The same with every step in one graph of torch.compile, where pynode offers it.
COMPILED = "pynode DP5 default, compile='step'"
if "compile" in inspect.signature(pynode.solve).parameters:
    FORWARD[COMPILED] = GRADIENT[COMPILED] = Pynode(algorithm=pynode.DP5(), compile="step")


def gradient(solver: Solver, case: Case) -> list[Tensor]:
    """Gradient of ``sum(y(t[-1])**2)`` with respect to y0 and every parameter."""
    y0 = case.y0.detach().requires_grad_()
    return list(torch.autograd.grad(solver(case, y0).pow(2).sum(), [y0, *case.field.parameters()]))


def final(solver: Solver, case: Case) -> Tensor:
    """``y(t[-1])``, without autograd."""
    with torch.no_grad():
        return solver(case, case.y0)


@dataclass
class Work:
    """Evaluations of a field, and pullbacks through it."""

    evaluations: int = 0
    pullbacks: int = 0


@contextlib.contextmanager
def counting(field: torch.nn.Module) -> Iterator[Work]:
    """Count what is done with ``field`` inside the context."""
    work = Work()

    def pulled(_: Tensor) -> None:
        work.pullbacks += 1

    def called(_module: Any, _inputs: Any, output: Tensor) -> None:
        work.evaluations += 1
        if output.requires_grad:
            output.register_hook(pulled)  # type: ignore[no-untyped-call]

    handle = field.register_forward_hook(called)
    try:
        yield work
    finally:
        handle.remove()


def work_of_forward(solver: Solver, case: Case) -> Work:
    """Work of a solve without autograd."""
    if isinstance(solver, Pynode) and solver.compiled:
        with torch.no_grad():
            return Work(solver.solution(case, case.y0).stats.forward.nfe)
    with counting(case.field) as work:
        final(solver, case)
    return work


def work_of_gradient(solver: Solver, case: Case) -> tuple[Work, Work]:
    """Work of the forward and of the backward pass of a gradient."""
    y0, parameters = case.y0.detach().requires_grad_(), list(case.field.parameters())
    if isinstance(solver, Pynode) and solver.compiled:
        sol = solver.solution(case, y0)
        torch.autograd.grad(sol.ys[-1].pow(2).sum(), [y0, *parameters])
        return Work(sol.stats.forward.nfe), Work(sol.stats.backward.nfe, sol.stats.backward.nvjp)
    with counting(case.field) as work:
        loss = solver(case, y0).pow(2).sum()
        forward = Work(work.evaluations, work.pullbacks)
        torch.autograd.grad(loss, [y0, *parameters])
    return forward, Work(work.evaluations - forward.evaluations, work.pullbacks - forward.pullbacks)


@dataclass(frozen=True)
class Reference:
    """Solution and gradient in float64 at 1e-12."""

    final: Tensor
    gradient: list[Tensor]


def reference(case: Case) -> Reference:
    """By Vern9 and torch's own tape."""
    solver, exact = Pynode(algorithm=pynode.Vern9(), sensealg=pynode.DirectAdjoint()), case.exact()
    return Reference(final(solver, exact), gradient(solver, exact))


def crosscheck(case: Case, found: Reference) -> tuple[str, float, float]:
    """An independent look at a reference.

    Returns
    -------
    peer : str
        SciPy's DOP853, or torchdiffeq's dopri8 where SciPy is absent.
    float
        Relative distance of the peer's solution.
    float
        Relative distance of the gradient from a five-point finite difference along a random direction.
    """
    exact = case.exact()
    try:
        from scipy.integrate import solve_ivp
    except ImportError:
        peer, values = "torchdiffeq dopri8", final(TorchDiffEq(method="dopri8"), exact)
    else:

        def f(t: float, y: Any) -> Any:
            state = torch.from_numpy(y).reshape(exact.y0.shape)
            return exact.field(torch.tensor(t, dtype=torch.float64), state).reshape(-1).numpy()

        with torch.no_grad():
            solved = solve_ivp(
                f, case.t.tolist(), exact.y0.reshape(-1).numpy(), method="DOP853", rtol=1e-12, atol=1e-12
            )
        peer, values = "SciPy DOP853", torch.from_numpy(solved.y[:, -1]).reshape(exact.y0.shape)

    inputs = [exact.y0, *exact.field.parameters()]
    generator = torch.Generator().manual_seed(1)
    direction = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in inputs]
    solver = Pynode(algorithm=pynode.Vern9())

    def loss(distance: float) -> float:
        with torch.no_grad():
            for x, d in zip(inputs, direction, strict=True):
                x.add_(d, alpha=distance)
            value = final(solver, exact).pow(2).sum().item()
            for x, d in zip(inputs, direction, strict=True):
                x.sub_(d, alpha=distance)
        return value

    # The length at which truncation (fourth order) and rounding of the loss are of one size.
    size = 1e-3 * norm(inputs) / norm(direction)
    difference = (8.0 * (loss(size) - loss(-size)) - (loss(2 * size) - loss(-2 * size))) / (12.0 * size)
    slope = sum(torch.sum(g * d).item() for g, d in zip(found.gradient, direction, strict=True))
    return peer, error(values, found.final), abs(difference - slope) / abs(slope)


def norm(tensors: Sequence[Tensor]) -> float:
    """Euclidean norm of all elements."""
    return math.sqrt(sum(x.detach().double().pow(2).sum().item() for x in tensors))


def error(value: Tensor | Sequence[Tensor], exact: Tensor | Sequence[Tensor]) -> float:
    """Relative Euclidean distance, over all tensors together."""
    values = [value] if isinstance(value, Tensor) else value
    exacts = [exact] if isinstance(exact, Tensor) else exact
    return norm([v.double() - e for v, e in zip(values, exacts, strict=True)]) / norm(exacts)


def root_mean_square(values: Sequence[float]) -> float:
    """The root of the mean of the squares."""
    return math.sqrt(sum(x * x for x in values) / len(values))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this experiment."""
    parser.add_argument("--repeats", type=int, default=60, help="rounds of slots (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=5, help="fields whose errors are averaged (default: %(default)s)")
    parser.add_argument("--eager", action="store_true", help="leave out what torch.compile must compile first")
    parser.add_argument("--quick", action="store_true", help="5 rounds and 1 draw: a look, not a measurement")


def run(options: argparse.Namespace) -> Report:
    """Measure every case."""
    _torchdiffeq()
    rounds, draws = (5, 1) if options.quick else (options.repeats, options.draws)
    solvers = [{k: v for k, v in x.items() if not (options.eager and k == COMPILED)} for x in (FORWARD, GRADIENT)]
    return measure([[make(seed) for seed in range(draws)] for make in CASES.values()], rounds, *solvers)


def measure(
    cases: Sequence[Sequence[Case]], rounds: int, forward: dict[str, Solver], gradients: dict[str, Solver]
) -> Report:
    """The experiment.

    Parameters
    ----------
    cases : sequence of draws of a case
        The first draw of each is timed, the errors are of all.
    rounds : int
    forward, gradients : dict of name to solver
    """
    report = Report([], [])
    for draws in cases:
        case, name = draws[0], draws[0].name
        references = [reference(draw) for draw in draws]
        peer, solution_gap, gradient_gap = crosscheck(case, references[0])
        report.notes.append(
            f"{name}: the float64 reference (Vern9 at 1e-12) is {solution_gap:.0e} from {peer}, its gradient "
            f"{gradient_gap:.0e} from finite differences along a random direction; relative errors, root mean square "
            f"of {len(draws)} draw(s)."
        )
        solved = _forward(forward, draws, references, rounds)
        pulled = _gradient(gradients, draws, references, rounds)
        report.tables += [_forward_table(case, solved), _gradient_table(case, pulled)]
        report.claims += _claims(name, solved, pulled)
        report.data[name] = {
            "title": case.title,
            "forward": {row: _plain(values) for row, values in solved.items()},
            "gradient": {row: _plain(values) for row, values in pulled.items()},
            "reference": {"peer": peer, "solution": solution_gap, "finite_difference": gradient_gap},
        }
    report.notes.append(
        "times in ms a call; 'faster' is the median over rounds of the peer's time over the row's, in the same round; "
        "'each / bare f' is the time over that of as many evaluations of the bare field."
    )
    return report


Row = dict[str, Any]


def each(draws: Sequence[Case]) -> Iterator[Case]:
    """The draws, one after another in the first one's field: whatever was compiled for it serves for all."""
    field, own = draws[0].field, copy.deepcopy(draws[0].field.state_dict())
    for draw in draws:
        field.load_state_dict(own if draw is draws[0] else draw.field.state_dict())
        yield dataclasses.replace(draw, field=field)
    field.load_state_dict(own)


def _forward(
    solvers: dict[str, Solver], draws: Sequence[Case], references: Sequence[Reference], rounds: int
) -> dict[str, Row]:
    case = draws[0]
    rows: dict[str, Row] = {}
    for name, solver in solvers.items():
        work = work_of_forward(solver, case)
        errors = [error(final(solver, c), r.final) for c, r in zip(each(draws), references, strict=True)]
        steps = solver.steps(case)
        rows[name] = {"evaluations": work.evaluations, "steps": steps, "error": root_mean_square(errors)}

    def bare() -> None:
        with torch.no_grad():
            for _ in range(calls):
                case.field(case.t[0], case.y0)

    # One slot of the bare field is as long as the evaluations of one solve.
    calls = int(rows[OURS]["evaluations"])
    contestants = {name: functools.partial(final, solver, case) for name, solver in solvers.items()}
    timings = alternate({**contestants, BARE: bare}, rounds)
    timings[BARE] = Timing(tuple(sample / calls for sample in timings[BARE].samples))
    for name, row in rows.items():
        row["timing"] = timings[name]
        row["faster"] = timings[PEER].over(timings[name])
        row["per_evaluation"] = timings[name].over(timings[BARE]) / row["evaluations"]
    rows[BARE] = {"timing": timings[BARE], "evaluations": 1, "per_evaluation": 1.0}
    return rows


def _gradient(
    solvers: dict[str, Solver], draws: Sequence[Case], references: Sequence[Reference], rounds: int
) -> dict[str, Row]:
    case = draws[0]
    rows: dict[str, Row] = {}
    for name, solver in solvers.items():
        forward, backward = work_of_gradient(solver, case)
        errors = [error(gradient(solver, c), r.gradient) for c, r in zip(each(draws), references, strict=True)]
        rows[name] = {
            "forward": forward.evaluations,
            "backward": backward.evaluations,
            "pullbacks": forward.pullbacks + backward.pullbacks,
            "steps": solver.steps(case),
            "error": root_mean_square(errors),
        }
    contestants = {name: functools.partial(gradient, solver, case) for name, solver in solvers.items()}
    timings = alternate(contestants, rounds)
    for name, row in rows.items():
        row["timing"] = timings[name]
        row["faster"] = timings[ADJOINT].over(timings[name])
        row["faster_backprop"] = timings[BACKPROP].over(timings[name])
    return rows


def _plain(row: Row) -> Row:
    timing: Timing = row["timing"]
    rest = {key: value for key, value in row.items() if key != "timing"}
    return {"median": timing.median, "min": timing.minimum, **rest, "samples": list(timing.samples)}


def _times(row: Row) -> tuple[str, str]:
    timing: Timing = row["timing"]
    return f"{timing.median * 1e3:.3f}", f"{timing.minimum * 1e3:.3f}"


def _forward_table(case: Case, rows: dict[str, Row]) -> Table:
    columns = ("", "median", "min", "faster than dopri5", "evaluations", "steps", "each / bare f", "error")
    cells: list[tuple[str, ...]] = []
    for name, row in rows.items():
        if name == BARE:
            cells.append((name, *_times(row), "", "1", "", "1.00", ""))
            continue
        cells.append(
            (
                name,
                *_times(row),
                f"{row['faster']:.2f}",
                str(row["evaluations"]),
                _steps(row),
                f"{row['per_evaluation']:.2f}",
                f"{row['error']:.1e}",
            )
        )
    return Table(f"forward, {case.title}", columns, cells)


def _gradient_table(case: Case, rows: dict[str, Row]) -> Table:
    columns = ("", "median", "min", "faster than adjoint", "than backprop", "f forward", "f backward", "pullbacks")
    cells: list[tuple[str, ...]] = [
        (
            name,
            *_times(row),
            f"{row['faster']:.2f}",
            f"{row['faster_backprop']:.2f}",
            str(row["forward"]),
            str(row["backward"]),
            str(row["pullbacks"]),
            _steps(row),
            f"{row['error']:.1e}",
        )
        for name, row in rows.items()
    ]
    return Table(f"gradient, {case.title}", (*columns, "steps", "error"), cells)


def _steps(row: Row) -> str:
    accepted, rejected = row["steps"]
    return f"{accepted} + {rejected}"


def _claims(name: str, forward: dict[str, Row], backward: dict[str, Row]) -> list[Claim]:
    """What was promised for the spiral; the same figures for any other case."""
    ours, default = forward[OURS], backward[DEFAULT]
    peers = {peer: backward[peer]["error"] for peer in (ADJOINT, BACKPROP)}
    # "No larger" up to what another draw would change: 5 %.
    figures = [
        (f"forward {ours['faster']:.2f}x as fast as {PEER} (>= 3)", ours["faster"], ours["faster"] >= 3.0),
        (
            f"solution error {ours['error']:.1e}, {PEER} {forward[PEER]['error']:.1e} (no larger)",
            ours["error"],
            ours["error"] <= 1.05 * forward[PEER]["error"],
        ),
        (
            f"one evaluation costs {ours['per_evaluation']:.2f} of the bare field (<= 1.3)",
            ours["per_evaluation"],
            ours["per_evaluation"] <= 1.3,
        ),
        (
            f"gradient {default['faster']:.2f}x as fast as {ADJOINT} (>= 10)",
            default["faster"],
            default["faster"] >= 10.0,
        ),
        (
            f"gradient {default['faster_backprop']:.2f}x as fast as {BACKPROP} (>= 1)",
            default["faster_backprop"],
            default["faster_backprop"] >= 1.0,
        ),
        (
            f"gradient error {default['error']:.1e}, "
            + ", ".join(f"{peer} {value:.1e}" for peer, value in peers.items())
            + " (no larger)",
            default["error"],
            default["error"] <= 1.05 * min(peers.values()),
        ),
    ]
    if COMPILED in backward:
        compiled = backward[COMPILED]["faster"]
        text = f"gradient with compile='step' {compiled:.2f}x as fast as {ADJOINT} (>= 10)"
        figures.append((text, compiled, compiled >= 10.0))
    promised = name == "spiral"
    return [Claim(f"{name}: {text}", value, met if promised else None) for text, value, met in figures]
