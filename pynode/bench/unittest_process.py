"""Runs unittest files in a process of its own and prints what passed, as JSON.

``python -m pynode.bench.unittest_process SOURCE [--drop-in] FILE...``: the files ``tests/FILE.py`` of the checkout
SOURCE of torchdiffeq, against that checkout or against ``pynode.compat.torchdiffeq`` under its name.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
import unittest
import warnings
from pathlib import Path
from typing import Any

import torch


class Tally(unittest.TestResult):
    """Counts tests and subtests; a subtest that passes is counted too, which unittest's own results do not."""

    def __init__(self) -> None:
        super().__init__()
        self.subtests = 0
        self.broken: list[dict[str, str]] = []
        self._failed: set[int] = set()
        self.failed_subtests = 0

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        self.subtests += 1
        if err is not None:
            self.failed_subtests += 1
            self._note(test, subtest, err)
        super().addSubTest(test, subtest, err)

    def addFailure(self, test: Any, err: Any) -> None:
        self._note(test, test, err)
        super().addFailure(test, err)

    def addError(self, test: Any, err: Any) -> None:
        self._note(test, test, err)
        super().addError(test, err)

    @property
    def failed_tests(self) -> int:
        """Tests that failed, or that one of their subtests failed in."""
        return len(self._failed)

    def _note(self, test: Any, what: Any, err: Any) -> None:
        self._failed.add(id(test))
        where = traceback.extract_tb(err[2])[-1]
        reason = f"{err[0].__name__}: {str(err[1]).strip().splitlines()[0] if str(err[1]).strip() else ''}"
        self.broken.append({"test": str(what), "reason": reason, "line": f"{Path(where.filename).name}:{where.lineno}"})


def run(names: list[str], tests: Path) -> dict[str, Any]:
    """Run the files ``names`` of the folder ``tests``: counts, failures and seconds per file."""
    sys.path.insert(0, str(tests))
    report: dict[str, Any] = {}
    for name in names:
        tally = Tally()
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            unittest.defaultTestLoader.loadTestsFromName(name).run(tally)
        report[name] = {
            "tests": tally.testsRun,
            "tests_failed": tally.failed_tests,
            "subtests": tally.subtests,
            "subtests_failed": tally.failed_subtests,
            "seconds": time.perf_counter() - start,
            "broken": tally.broken,
        }
    return report


def main() -> None:
    """Run the test files that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--drop-in", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if options.drop_in:
        from pynode.compat import installed

        installed.as_torchdiffeq()
    else:
        sys.path.insert(0, str(options.source))
    print(json.dumps(run(options.files, options.source / "tests")))


if __name__ == "__main__":
    main()
