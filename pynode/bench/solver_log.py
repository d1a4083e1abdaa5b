"""The runs of :mod:`pynode.bench.solvers` as they end: a line of progress each, and a file to go on from."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from pynode.bench.solver_runs import Run
from pynode.errors import InputError, explain


class RunLog:
    """Runs by problem, method, library and tolerance.

    Parameters
    ----------
    path : Path, optional
        A file of JSON lines, a run each. Its runs are taken as done; :meth:`add` appends to it. A last line that was
        cut short is dropped, and its run done again.

    Raises
    ------
    InputError
        If the file holds anything else.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._runs: dict[tuple[str, str, str, str], Run] = {}
        if path is None or not path.exists():
            return
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole, encoding="utf-8")
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                self._keep(Run(**json.loads(line)))
            except (ValueError, TypeError) as error:
                what = f"line {number} of {path} is no run: {error}"
                remedy = "name another file, or one that does not exist"
                raise InputError(explain(what, "a file that --keep has written", remedy)) from error

    def _keep(self, one: Run) -> None:
        self._runs[one.problem, one.method, one.library, f"{one.rtol:.6g}"] = one

    def find(self, problem: str, method: str, library: str, rtol: float) -> Run | None:
        """The run, if it has been done."""
        return self._runs.get((problem, method, library, f"{rtol:.6g}"))

    def add(self, one: Run) -> None:
        """Keep a run that has ended, and say so on standard error."""
        self._keep(one)
        outcome = one.failure.split(". ")[0] if one.error is None else f"error {one.error:.1e}, work {one.work}"
        line = f"{one.problem} {one.library} {one.method} rtol {one.rtol:g}: {outcome}, {one.seconds:.1f} s"
        print(line, file=sys.stderr, flush=True)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(one)) + "\n")
