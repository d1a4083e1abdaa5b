"""Public objects survive pickle and deepcopy, or say why they cannot; SolveError does not hang who waits for it."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fields_to_send import Network, decay, half, rows_half

import pynode

ROUND_TRIPS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "copy": copy.deepcopy,
}


def _made(cls: type, *arguments: Any, **options: Any) -> Any:
    try:
        return cls(*arguments, **options)
    except (TypeError, ValueError):
        return None


#: Every public class that can be made of nothing, and one of each that cannot.
PLAIN: dict[str, Any] = {
    name: made
    for name in pynode.__all__
    if inspect.isclass(cls := getattr(pynode, name)) and not issubclass(cls, BaseException)
    if (made := _made(cls)) is not None
}
PLAIN |= {
    "SaveAt with times": pynode.SaveAt(ts=[0.0, 1.0], dense=True),
    "PerSample": pynode.PerSample(torch.ones(2)),
    "Event": pynode.Event(half),
    "JuliaAlgorithm": pynode.JuliaAlgorithm("Rodas5P"),
    "ReturnCode": pynode.ReturnCode.MaxIters,
    "CheckpointedAdjoint bounded": pynode.CheckpointedAdjoint(checkpoints=5),
    "RK4": pynode.RK4(dt=0.1),
    "AutoTsit5": pynode.AutoTsit5(pynode.Rosenbrock23()),
    "PIDController": pynode.PIDController(pcoeff=0.1),
    "InputError": pynode.InputError("what came"),
}


@pytest.mark.parametrize("how", ROUND_TRIPS)
@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_object_comes_back_equal(name: str, how: str) -> None:
    before = PLAIN[name]
    after = ROUND_TRIPS[how](before)
    assert type(after) is type(before)
    assert repr(after).partition(" at 0x")[0] == repr(before).partition(" at 0x")[0]


SOLUTIONS: dict[str, Callable[[], Any]] = {
    "plain": lambda: pynode.solve(decay, torch.ones(4), [0.0, 1.0]),
    "dense": lambda: pynode.solve(decay, torch.ones(4), [0.0, 1.0], saveat=pynode.SaveAt(dense=True)),
    "module": lambda: pynode.solve(Network(), torch.ones(4), [0.0, 1.0]),
    "stiff": lambda: pynode.solve(Network(), torch.ones(4), [0.0, 1.0], algorithm=pynode.RadauIIA5()),
    "event": lambda: pynode.solve(decay, torch.ones(4), [0.0, 1.0], events=pynode.Event(half)),
    "rows": lambda: pynode.solve(decay, torch.ones(2, 4), [0.0, 1.0], batching="independent"),
    "rows' event": lambda: pynode.solve(
        decay, torch.ones(2, 4), [0.0, 0.6], batching="independent", events=pynode.Event(rows_half)
    ),
}


@pytest.mark.parametrize("how", ROUND_TRIPS)
@pytest.mark.parametrize("name", SOLUTIONS)
def test_a_solution_without_a_gradient_comes_back_with_its_dense_output(name: str, how: str) -> None:
    with torch.no_grad():
        before = SOLUTIONS[name]()
        after = ROUND_TRIPS[how](before)
        assert torch.equal(after.ys, before.ys)
        assert torch.equal(after(0.3), before(0.3))
        assert str(after) == str(before)
        if name in ("plain", "module", "event"):
            more = [x.resume(x.span[1] + 1.0).ys for x in (before, after)]
            assert torch.equal(*more)


@pytest.mark.parametrize("how", ROUND_TRIPS)
def test_the_copy_of_a_solution_notices_a_changed_field_too(how: str) -> None:
    network = Network()
    with torch.no_grad():
        before = pynode.solve(network, torch.ones(4), [0.0, 1.0])
        network.inner.bias.add_(1.0)
        with pytest.raises(pynode.InputError, match="modified in place"):
            ROUND_TRIPS[how](before)(0.5)


@pytest.mark.parametrize("how", ROUND_TRIPS)
def test_what_cannot_be_sent_says_so(how: str) -> None:
    network = Network()
    with pytest.raises(pynode.UnsupportedError, match=r"states have a gradient was pickled or copied.*no_grad"):
        ROUND_TRIPS[how](pynode.solve(network, torch.ones(4), [0.0, 1.0]))
    with torch.no_grad():
        for _ in range(2):  # the second one is on a lane
            compiled = pynode.solve(network, torch.ones(4), [0.0, 1.0], compile="solve")
            with pytest.raises(pynode.UnsupportedError, match=r"C\+\+ or Julia was pickled or copied.*sol\.ys"):
                ROUND_TRIPS[how](compiled)
    ROUND_TRIPS[how](network)  # which programs and lanes belong to


@pytest.mark.parametrize("how", ROUND_TRIPS)
def test_a_solve_error_comes_back_without_its_solution(how: str) -> None:
    with pytest.raises(pynode.SolveError) as caught:
        pynode.solve(lambda t, y: y**2, torch.ones(1), [0.0, 2.0])
    after = ROUND_TRIPS[how](caught.value)
    assert (str(after), after.retcode, after.t, after.solution) == (
        str(caught.value),
        caught.value.retcode,
        caught.value.t,
        None,
    )


@pytest.mark.parametrize("how", ROUND_TRIPS)
def test_models_come_back_and_solve_alike(how: str) -> None:
    warm = pynode.WarmStart()
    node = pynode.nn.NeuralODE(Network(), t=(0.0, 1.0), dt0=warm)
    node(torch.ones(4))
    after = ROUND_TRIPS[how](node)
    assert torch.equal(after(torch.ones(4)), node(torch.ones(4)))
    flow = pynode.nn.CNF(Network(), 4)
    assert torch.equal(ROUND_TRIPS[how](flow).log_prob(torch.ones(3, 4)), flow.log_prob(torch.ones(3, 4)))
    result = pynode.ensemble(decay, torch.ones(3, 1), [0.0, 1.0])
    assert torch.equal(ROUND_TRIPS[how](result).ys, result.ys)
