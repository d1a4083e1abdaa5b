"""Committed ratios of our times to the peers', and whether a run is slower than they were.

Ratios travel between machines better than times, yet not freely: caches, vector instructions and other versions of a
peer move them by some tenths. So a ratio counts as a regression where it exceeds the committed one by more than the
file's tolerance (0.25: a quarter slower beside the same peer), and the machine class that the baseline was measured on
is shown beside it where it is another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pynode.errors import InputError, explain

#: The committed file.
PATH = Path(__file__).parent / "baseline.json"

#: What a ratio may exceed its baseline by, as a share of it, where a new file is begun.
TOLERANCE = 0.25

#: Facts of :func:`pynode.bench.environment` that are kept beside the ratios.
KEPT = ("pynode", "python", "torch", "torchdiffeq", "torchode", "diffrax", "jax", "scipy", "cpu", "machine", "threads")


@dataclass(frozen=True)
class Verdict:
    """Outcome of a check.

    ``regressed``: (name, ratio now, ratio then) of what became slower; ``compared`` counts the ratios held against the
    baseline; ``only_there``, ``only_here``: those that the run or the baseline does not have. ``elsewhere``: the
    machine class of the baseline where it is not this one.
    """

    regressed: list[tuple[str, float, float]]
    compared: int
    only_there: list[str]
    only_here: list[str]
    elsewhere: str | None
    tolerance: float

    @property
    def failed(self) -> bool:
        """A check that compared nothing has not passed."""
        return bool(self.regressed) or not self.compared

    def lines(self) -> list[str]:
        """What is printed."""
        said = [
            f"REGRESSED: {name}: {now:.3f} of the peer's time, baseline {then:.3f} (tolerance {self.tolerance:.0%})"
            for name, now, then in self.regressed
        ]
        if self.only_there:
            said.append(
                f"{len(self.only_there)} ratios of the baseline not measured here: {'; '.join(self.only_there)}"
            )
        if self.only_here:
            said.append(f"{len(self.only_here)} ratios have no baseline")
        if self.elsewhere is not None:
            said.append(f"the baseline was measured on another class of machine: {self.elsewhere}")
        said.append(f"{self.compared} ratios held against the baseline, {len(self.regressed)} regressed")
        if not self.compared:
            said.append("nothing could be compared: the check fails")
        return said


def key_of(experiment: str, quick: bool) -> str:
    """Name of the section for an experiment: small sizes have ratios of their own."""
    return f"{experiment} --quick" if quick else experiment


def check(key: str, ratios: Mapping[str, float], facts: Mapping[str, Any], path: Path = PATH) -> Verdict:
    """Hold the ratios of a run against the committed ones.

    Raises
    ------
    InputError
        If there is no baseline for ``key``.
    """
    document = _read(path)
    section = document["sections"].get(key)
    if section is None:
        raise InputError(
            explain(
                f"{path.name} has no ratios for {key!r}",
                f"one of {', '.join(document['sections']) or 'none yet'}",
                "measure them with --update-baseline",
            )
        )
    tolerance, then = float(document["tolerance"]), section["ratios"]
    both = [name for name in then if name in ratios]
    # Written so that a ratio that is not a number counts as regressed.
    regressed = [(n, ratios[n], then[n]) for n in both if not ratios[n] <= then[n] * (1.0 + tolerance)]
    machine = section["environment"].get("machine")
    return Verdict(
        regressed=regressed,
        compared=len(both),
        only_there=[name for name in then if name not in ratios],
        only_here=[name for name in ratios if name not in then],
        elsewhere=machine if machine != facts.get("machine") else None,
        tolerance=tolerance,
    )


def update(key: str, ratios: Mapping[str, float], facts: Mapping[str, Any], path: Path = PATH) -> None:
    """Write the ratios of a run as the new baseline of ``key``; other sections stay.

    Raises
    ------
    InputError
        If there are none.
    """
    if not ratios:
        raise InputError(explain(f"{key!r} gave no ratios", "at least one", "install a peer, or leave out --without"))
    document: dict[str, Any] = _read(path) if path.exists() else {"tolerance": TOLERANCE, "sections": {}}
    document["sections"][key] = {
        "environment": {name: facts[name] for name in KEPT if name in facts},
        "ratios": {name: round(value, 4) for name, value in sorted(ratios.items())},
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            explain(f"there is no {path.name}", "the committed ratios", "measure them with --update-baseline")
        ) from error
    return document
