"""Models with solves inside, trained by several processes: gradients are those of one, whatever a rank's rows cost."""

from __future__ import annotations

import pytest
from launching import torchrun


def test_two_processes_under_ddp_whose_rows_cost_more_on_one() -> None:
    said = torchrun("data_parallel_ranks.py", 2, "ddp", "default", "classifier")
    assert "right classifier, ddp, default" in said


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(
    ("wrappers", "ways", "tasks"),
    [
        ("ddp", "default,direct,backsolve,interpolating,gauss,quadrature,bounded,implicit,rows,solve", "classifier"),
        ("ddp unused,ddp static,ddp views,ddp no_sync", "default,direct,gauss", "classifier"),
        ("fsdp2,fsdp2 nested", "default,direct,backsolve,interpolating,gauss,quadrature,rows,solve", "classifier"),
        ("fsdp1,fsdp1 flat", "default,direct,backsolve,interpolating,gauss,quadrature,rows", "classifier"),
        ("ddp,ddp no_sync,fsdp2 nested,fsdp1", "default,direct,gauss,backsolve", "flow"),
    ],
)
def test_gradients_are_those_of_one_process(ranks: int, wrappers: str, ways: str, tasks: str) -> None:
    said = torchrun("data_parallel_ranks.py", ranks, wrappers, ways, tasks, limit=1200.0)
    cases = [f"{tasks}, {wrapper}, {way}:" for wrapper in wrappers.split(",") for way in ways.split(",")]
    assert all(f"right {case}" in said for case in cases)


@pytest.mark.slow
def test_compiled_steps() -> None:
    said = torchrun("data_parallel_ranks.py", 2, "ddp,fsdp2 nested", "step,step gauss", "classifier", limit=1200.0)
    assert said.count("right classifier") == 4


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_field_that_is_wrapped_itself_works_or_says_why_not(ranks: int) -> None:
    said = torchrun("wrapped_field_ranks.py", ranks)
    assert (said.count("right "), said.count("refused ")) == (7, 10)
