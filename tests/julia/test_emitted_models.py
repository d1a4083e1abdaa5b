"""Emitted source of the fields of ``pynode.nn``, executed by Julia, against torch's own derivatives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fields_of_models import MODELS
from julia_process import WITHOUT_JULIA, Program, julia_executable, run_programs
from products_by_torch import Reference

from pynode import julia

DTYPES = (torch.float32, torch.float64)


@pytest.mark.slow  # a minute, most of it Julia compiling
def test_emitted_functions_agree_with_torch(tmp_path: Path) -> None:
    """All in one process of Julia, in both precisions."""
    executable = julia_executable()
    if executable is None:
        pytest.skip(WITHOUT_JULIA)
    references = {name: Reference(make) for name, make in MODELS.items()}
    cases = [(name, dtype) for name in MODELS for dtype in DTYPES]
    programs = []
    for name, dtype in cases:
        made = MODELS[name](dtype)
        source = julia.source(made.f, made.times[0], made.y0, made.args)
        programs.append(Program(f"{name} {dtype}", source, references[name].points[dtype]))
    outcomes = run_programs(programs, tmp_path, executable)
    assert [x.error for x in outcomes if x.error] == []
    deviations = [
        f"{name} {dtype}: {deviation}"
        for (name, dtype), outcome in zip(cases, outcomes, strict=True)
        for deviation in references[name].deviations(outcome.values)
    ]
    assert deviations == []
