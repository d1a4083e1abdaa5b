"""What the soak found to stay behind, one by one."""

from __future__ import annotations

import gc

import torch
import torch.fx.graph_module
from faulty_field import Base

import pynode


def tensors():
    gc.collect()
    return sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())


def test_states_at_events_are_let_go():
    """The watch of a stretch held a state whose node held the watch, through C++, where nobody collects."""
    w = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    event = pynode.Event(lambda t, y: y[0] - 0.5, terminal=False, effect=lambda t, y: 2.0 * y)

    def train():
        sol = pynode.solve(lambda t, y: -w * y, torch.ones(1, dtype=torch.float64), [0.0, 0.5, 2.0], events=event)
        assert len(sol.events) >= 3
        sol.ys[-1].sum().backward()
        w.grad = None

    train()
    before = tensors()
    for _ in range(3):
        train()
    assert tensors() <= before


def test_texts_of_captures_are_let_go():
    kept = torch.fx.graph_module._loader.eval_cache
    from pynode.capture.capturing import capture
    from pynode.capture.sources import forgotten_sources
    from pynode.known_fields import program_for
    from pynode.problem import ODEProblem

    problem = ODEProblem(Base(), torch.ones(2, dtype=torch.float64), [0.0, 1.0])
    before = len(kept)
    program_for(problem, None, "test", lambda problem, dependencies: capture(problem))
    assert len(kept) == before
    capture(problem)  # by itself it does leave some: the test can fail
    assert len(kept) > before
    with forgotten_sources():
        capture(problem)
    for name in list(kept)[before:]:
        del kept[name]
