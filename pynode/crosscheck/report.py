"""What a cross-check found: a table for people, JSON for programs, a sentence for each disagreement."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pynode.crosscheck.reference import Difference
from pynode.crosscheck.verdict import Excess
from pynode.solution import Counts

AGREES, DISAGREES, REFUSED, FAILED = "agrees", "DISAGREES", "refused", "FAILED"
NOT_OFFERED, NOT_REACHED, NOT_RESOLVED = "not offered", "out of time", "not resolved"


@dataclass
class Row:
    """One combination of backend (or oracle), algorithm and sensealg at one tolerance.

    Attributes
    ----------
    verdict : str
        ``agrees``; ``DISAGREES`` (wrong numbers: see ``excess``); ``refused`` (a SolveError or GradientError: the
        combination says itself that it cannot, see ``message``; any error of an oracle); ``FAILED`` (any other
        exception); ``not resolved`` (the solution itself changes with the steps: nothing can be said about its
        gradient); ``not offered``; ``out of time``.
    errors : dict of str to float
        Relative errors against the reference: ``solution``, and the gradients ``y0``, ``args[i]``, ``parameters`` (all
        together), ``t``.
    allowed : dict of str to float
        The bound of each quantity; every parameter tensor has its own.
    forward, backward : Counts
    seconds : float
        Median of one gradient, forward solve included.
    memory : int
        Peak bytes of one gradient; 0 for oracles that do not allocate through torch.
    """

    backend: str
    algorithm: str
    sensealg: str
    rtol: float
    atol: float
    verdict: str = AGREES
    errors: dict[str, float] = field(default_factory=dict)
    allowed: dict[str, float] = field(default_factory=dict)
    excess: Excess | None = None
    forward: Counts = field(default_factory=Counts)
    backward: Counts = field(default_factory=Counts)
    seconds: float = math.nan
    memory: int = 0
    message: str = ""
    #: The objects behind the names, where it is one of pynode's.
    objects: Any = None

    @property
    def measured(self) -> bool:
        return bool(self.errors)

    @property
    def gradient_error(self) -> float:
        """The largest relative error among the gradients."""
        return max((error for name, error in self.errors.items() if name != "solution"), default=math.nan)

    @property
    def name(self) -> str:
        return f"{self.backend} / {self.algorithm} / {self.sensealg} at rtol {self.rtol:.0e}, atol {self.atol:.0e}"

    def as_json(self) -> dict[str, Any]:
        """In plain types."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "objects"}
        return {
            **plain,
            "excess": None if self.excess is None else dataclasses.asdict(self.excess),
            "forward": dataclasses.asdict(self.forward),
            "backward": dataclasses.asdict(self.backward),
        }


@dataclass(frozen=True)
class Disagreement:
    """Who disagrees, and in what: ``str()`` is a sentence. ``quantity`` is the first that differs."""

    culprit: str
    quantity: str
    explanation: str

    def __str__(self) -> str:
        return f"{self.culprit}: {self.explanation}"


@dataclass
class CrosscheckReport:
    """Outcome of :func:`pynode.crosscheck`.

    Attributes
    ----------
    title : str
    reference : str
        How the reference was computed.
    differences : list of Difference
        The reference's gradient against finite differences of the loss, in random directions.
    rows : list of Row
    absent : dict of str to str
        Oracles and backends that did not take part, and why.
    notes : list of str

    Examples
    --------
    >>> f, y0 = lambda t, y: torch.sin(y), torch.ones(2, dtype=torch.float64)
    >>> only = {"algorithms": ["tsit5"], "sensealgs": ["Direct"], "backends": ["torch"]}
    >>> report = pynode.crosscheck(f, y0, [0.0, 1.0], oracles=(), repeats=1, **only)
    >>> report.disagreements, len(report.rows)
    ([], 1)
    """

    title: str
    reference: str
    differences: list[Difference]
    rows: list[Row]
    absent: dict[str, str]
    notes: list[str]

    @property
    def disagreements(self) -> list[Disagreement]:
        """What is wrong; the reference's own gradient first."""
        found = []
        wrong = [number for number, check in enumerate(self.differences) if not check.agrees]
        if wrong:
            check = self.differences[wrong[0]]
            culprit = f"the gradient of {check.quantity} is wrong: " if check.quantity else ""
            found.append(
                Disagreement(
                    "the derivative of f itself (reference gradient against finite differences)",
                    check.quantity or f"direction {wrong[0]}",
                    f"{culprit}the loss changes by {check.difference:.9g} per unit in random direction {wrong[0]}, its "
                    f"gradient by autograd says {check.gradient:.9g}; allowed difference {check.allowed:.2g}; in "
                    f"{len(wrong)} of {len(self.differences)} directions. All rows that agree are compared with that "
                    "gradient. Either a derivative in f or loss is wrong (a custom autograd.Function, detach(), a "
                    "kink), or the reference's steps are unstable in directions that y0 does not excite: try "
                    "reference='scipy'",
                )
            )
        for row in self.rows:
            if row.verdict == DISAGREES:
                assert row.excess is not None
                found.append(Disagreement(row.name, row.excess.quantity, str(row.excess)))
            elif row.verdict == FAILED:
                found.append(Disagreement(row.name, "", row.message))
        return found

    @property
    def ok(self) -> bool:
        """Whether nothing disagrees and something agrees."""
        return not self.disagreements and any(row.verdict == AGREES for row in self.rows)

    def summary(self) -> str:
        """Counts of verdicts in a line."""
        verdicts = [row.verdict for row in self.rows]
        counts = [
            f"{verdicts.count(v)} {v}"
            for v in (AGREES, DISAGREES, NOT_RESOLVED, REFUSED, FAILED, NOT_REACHED)
            if v in verdicts
        ]
        checks = sum(check.agrees for check in self.differences)
        return f"{', '.join(counts)}; finite differences confirm {checks} of {len(self.differences)} directions"

    def columns(self) -> tuple[str, ...]:
        """Heads of the table."""
        return (
            "backend",
            "algorithm",
            "sensealg",
            "rtol",
            *self._groups(),
            "f",
            "vjp",
            "b f",
            "b vjp",
            "ms",
            "KiB",
            "verdict",
        )

    def lines(self) -> list[tuple[str, ...]]:
        """Cells of the table: one row for each combination that is offered."""
        return [self._cells(row) for row in self.rows if row.verdict != NOT_OFFERED]

    def _groups(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row.errors))

    def _cells(self, row: Row) -> tuple[str, ...]:
        errors = [f"{row.errors[name]:.1e}" if name in row.errors else "-" for name in self._groups()]
        forward, backward = row.forward, row.backward
        counts = [str(n) if n else "-" for n in (forward.nfe, forward.nvjp, backward.nfe, backward.nvjp)]
        seconds = f"{row.seconds * 1e3:.1f}" if row.measured else "-"
        memory = f"{row.memory / 2**10:.1f}" if row.measured and row.memory else "-"
        head = (row.backend, row.algorithm, row.sensealg, f"{row.rtol:.0e}")
        return (*head, *errors, *counts, seconds, memory, row.verdict)

    def table(self) -> Any:
        """A ``rich`` table where rich is installed, else the same in plain characters."""
        if importlib.util.find_spec("rich") is None:
            return self.plain()
        from rich import box
        from rich.table import Table

        table = Table(title=self.title, title_justify="left", box=box.SIMPLE_HEAVY, padding=(0, 1, 0, 0))
        colors = {AGREES: "green", DISAGREES: "bold red", FAILED: "bold red", REFUSED: "yellow", NOT_RESOLVED: "yellow"}
        for index, column in enumerate(self.columns()):
            table.add_column(column, justify="left" if index < 3 else "right", no_wrap=True)
        for line in self.lines():
            table.add_row(*line, style=colors.get(line[-1], "") if line[-1] != AGREES else "")
        return table

    def plain(self) -> str:
        """The table in characters."""
        cells = [self.columns(), *self.lines()]
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        rows = ["  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip() for row in cells]
        return "\n".join([self.title, *rows])

    def details(self) -> list[str]:
        """What stands below the table: the reference, what is absent, what was refused, what disagrees."""
        lines = [
            f"errors are relative, against {self.reference}; f, vjp: evaluations of f and products with its "
            "Jacobian, b: of the backward pass; ms, KiB: of one gradient, forward solve included",
            *self.notes,
        ]
        for row in self.rows:
            if row.verdict in (REFUSED, NOT_RESOLVED):
                lines.append(f"{row.verdict}: {row.name}: {row.message}")
        missing = {(row.backend, row.sensealg): row.message for row in self.rows if row.verdict == NOT_OFFERED}
        lines += [f"not offered: {sensealg} by {backend}: {why}" for (backend, sensealg), why in missing.items()]
        lines += [f"absent: {name}: {why}" for name, why in self.absent.items()]
        lines += [f"DISAGREES: {found}" for found in self.disagreements]
        return [*lines, ("OK: " if self.ok else "NOT OK: ") + self.summary()]

    def print(self) -> None:
        """Print everything."""
        if importlib.util.find_spec("rich") is None:
            print(self.plain())
        else:
            from rich.console import Console

            console = Console()
            # A file or a pipe has no width of its own; a table cut to 80 characters would lose its numbers.
            (console if console.is_terminal else Console(width=200)).print(self.table())
        for line in self.details():
            print(line)

    def __str__(self) -> str:
        return "\n".join([self.plain(), *self.details()])

    def as_json(self) -> dict[str, Any]:
        """In plain types."""
        return {
            "title": self.title,
            "ok": self.ok,
            "reference": self.reference,
            "differences": [{**dataclasses.asdict(x), "agrees": x.agrees} for x in self.differences],
            "rows": [row.as_json() for row in self.rows],
            "absent": self.absent,
            "notes": self.notes,
            "disagreements": [str(x) for x in self.disagreements],
        }

    def to_json(self, path: str | Path) -> None:
        """Write everything to a file; numbers that JSON does not have are null."""
        Path(path).write_text(json.dumps(_strict(self.as_json()), indent=1) + "\n", encoding="utf-8")

    def plot(self, path: str | Path) -> None:
        """Draw the work-precision diagram: gradient error against time, a curve for each sensealg.

        Give :func:`pynode.crosscheck` several ``tolerances``. Needs matplotlib.
        """
        from pynode.crosscheck.plot import draw

        draw(self, Path(path))


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(x) for key, x in value.items()}
    if isinstance(value, list):
        return [_strict(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
