"""Threads that solve and differentiate at once get the bits of one thread."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fields_to_send import Network, states_and_gradients

import pynode

LIMIT = 300.0
THREADS = 4

WAYS: dict[str, dict[str, Any]] = {
    "checkpointed": {},
    "direct": {"sensealg": pynode.DirectAdjoint()},
    "backsolve": {"sensealg": pynode.BacksolveAdjoint()},
    "interpolating": {"sensealg": pynode.InterpolatingAdjoint()},
    "gauss": {"sensealg": pynode.GaussAdjoint()},
    "quadrature": {"sensealg": pynode.QuadratureAdjoint()},
    "forward": {"sensealg": pynode.ForwardSensitivity(), "rtol": 1e-3, "atol": 1e-3},
    "reversible": {"algorithm": pynode.ReversibleHeun(), "sensealg": pynode.ReversibleAdjoint(), "rtol": 1e-2},
    "implicit": {"algorithm": pynode.RadauIIA5(), "rtol": 1e-2, "atol": 1e-2},
    "rows": {"batching": "independent"},
    "solve": {"compile": "solve"},
}
COMPILED: dict[str, dict[str, Any]] = {
    "step": {"compile": "step"},
    "step, direct": {"compile": "step", "sensealg": pynode.DirectAdjoint()},
    "step, gauss": {"compile": "step", "sensealg": pynode.GaussAdjoint()},
}


@pytest.fixture(autouse=True)
def _quick_switches() -> Iterator[None]:
    """Threads take turns every hundredth of the usual time: what is not safe shows sooner."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(before)


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What calls return that threads begin together; the first exception of any."""
    found: list[Any] = [None] * len(calls)
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(calls))

    def run(index: int, call: Callable[[], Any]) -> None:
        try:
            barrier.wait(LIMIT)
            found[index] = call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i, call), daemon=True) for i, call in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]
    return found


def equal(found: list[list[torch.Tensor]], expected: list[list[torch.Tensor]]) -> bool:
    return all(
        torch.equal(x, y) for one, two in zip(found, expected, strict=True) for x, y in zip(one, two, strict=True)
    )


def repeated(field: Network, rows: int, options: dict[str, Any]) -> list[torch.Tensor]:
    return [x for _ in range(2) for x in states_and_gradients(field, rows, **options)]


def check(options: dict[str, Any]) -> None:
    rows = [1 + i % 2 for i in range(THREADS)]
    expected = [repeated(Network(i), rows[i], options) for i in range(THREADS)]
    fields = [Network(i) for i in range(THREADS)]  # new ones: what is kept of a field is found by all threads at once
    assert equal(at_once(*[lambda i=i: repeated(fields[i], rows[i], options) for i in range(THREADS)]), expected)
    # A gradient by compiled steps looks at its first step eagerly where nobody has yet, which gives other bits: with a
    # field that threads share it is open whose does.
    alone = [[states_and_gradients(field, row, **options) for _ in range(2)] for row in rows for field in [Network(0)]]
    shared = Network(0)  # what is kept of it is found by the first of them
    count = len(alone[0][0])
    for found, known in zip(
        at_once(*[lambda i=i: repeated(shared, rows[i], options) for i in range(THREADS)]), alone, strict=True
    ):
        for one in (found[:count], found[count:]):
            assert any(equal([one], [x]) for x in (known if options.get("compile") == "step" else known[:1]))


@pytest.mark.parametrize(
    "way", [x if x in ("checkpointed", "gauss", "solve") else pytest.param(x, marks=pytest.mark.slow) for x in WAYS]
)
def test_threads_get_the_bits_of_one(way: str) -> None:
    check(WAYS[way])


@pytest.mark.slow
@pytest.mark.parametrize("way", COMPILED)
def test_threads_that_compile_steps_at_once(way: str) -> None:
    check(COMPILED[way])


def test_modes_of_one_thread_do_not_reach_another() -> None:
    field, other = Network(0), Network(1).double()
    expected = repeated(field, 2, {})
    y0 = torch.ones(3, 4)

    def without_gradients() -> list[torch.Tensor]:
        with torch.no_grad():
            found = [pynode.solve(field, y0, [0.0, 1.0]).ys for _ in range(4)]
        assert not any(x.requires_grad for x in found)
        return found[:1]

    def in_double() -> list[torch.Tensor]:
        y = torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
        return [torch.autograd.grad(pynode.solve(other, y, [0.0, 1.0]).ys.sum(), y)[0] for _ in range(2)]

    def in_inference_mode() -> list[torch.Tensor]:
        with torch.inference_mode():
            return [pynode.solve(field, y0, [0.0, 1.0]).ys.clone() for _ in range(2)]

    def in_bfloat16() -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return [pynode.solve(field, y0, [0.0, 1.0], rtol=1e-2, atol=1e-2).ys.detach() for _ in range(2)]

    calls = [without_gradients, in_double, in_inference_mode, in_bfloat16]
    alone = [call() for call in calls]
    found = at_once(*calls, lambda: repeated(field, 2, {}))
    assert equal(found[:-1], alone)
    assert equal(found[-1:], [expected])


def test_a_warm_start_each_and_backward_in_another_thread() -> None:
    field = Network(0)
    y0 = torch.ones(2, 4)
    expected = torch.autograd.grad(pynode.solve(field, y0, [0.0, 1.0]).ys.sum(), list(field.parameters()))
    losses = [pynode.solve(field, y0, [0.0, 1.0], dt0=pynode.WarmStart()).ys.sum() for _ in range(THREADS)]
    found = at_once(*[lambda x=x: torch.autograd.grad(x, list(field.parameters())) for x in losses])
    assert equal(found, [list(expected)] * THREADS)
