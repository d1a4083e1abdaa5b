"""What every exported model has to do: equal gradients under every sensitivity algorithm, a state_dict that restores
it, a place in a compiled model, and the gradient of one process in two (see test_every_model.py for those of states,
fields and depths, which are asked for more there)."""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from exported_models import DISCRETE, EVERY, OTHERS, OWN, loss_of, made, missing_classes
from torch import Tensor, nn

import pynode

TOLERANCE = 1e-6
#: Some 20 steps in either direction, of errors below the tolerance, and flows that amplify by 2 or so.
BOUND = 100 * TOLERANCE
SENSEALGS = (
    pynode.CheckpointedAdjoint(),
    pynode.BacksolveAdjoint(),
    pynode.InterpolatingAdjoint(),
    pynode.GaussAdjoint(),
)
#: Compiled, and given to two processes, in every run of the tests; all models in the slow ones.
FAMILIES = ("augmented", "data control", "CNF", "Hamiltonian")


def test_no_exported_class_is_missing():
    """Add a model with the class to ``tests/nn/exported_models.py``."""
    assert missing_classes() == set()
    assert [name for name in OTHERS if not hasattr(pynode.nn, name)] == []


def leaves_of(x: Any) -> list[Tensor]:
    return list(x.values()) if isinstance(x, dict) else [x]


def gradients(name: str, **options: Any) -> list[Tensor]:
    model, x = made(name, **options)
    return list(torch.autograd.grad(loss_of(model(x)), [*leaves_of(x), *model.parameters()]))


@pytest.mark.parametrize("name", [name for name in OWN if name not in DISCRETE])
def test_sensitivity_algorithms_agree(name):
    options = {"rtol": TOLERANCE, "atol": TOLERANCE}
    expected = gradients(name, sensealg=pynode.DirectAdjoint(), **options)
    assert all(g.abs().max() > 0 for g in expected)
    largest = max(g.abs().max().item() for g in expected)
    for sensealg in SENSEALGS:
        # The discrete adjoint is the tape's derivative, summed in another order.
        bound = 1e-12 if isinstance(sensealg, pynode.CheckpointedAdjoint) else BOUND
        for a, b in zip(gradients(name, sensealg=sensealg, **options), expected, strict=True):
            distance = (a - b).abs().max().item()
            assert distance < bound * largest, f"{sensealg.name}: off by {distance:.1e} of {largest:.1e}"


@pytest.mark.parametrize("name", OWN)
def test_state_dict_restores_a_model(name):
    model, x = made(name)
    other, _ = made(name)
    with torch.no_grad():
        expected = model(x)
        for parameter in other.parameters():
            parameter.add_(0.1)
        assert not torch.equal(other(x), expected)
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(other(x), expected)
    assert len({id(p) for p in model.parameters()}) == len(list(model.named_parameters()))


class Surrounded(nn.Module):
    """The model between operations that a compiler takes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any) -> Tensor:
        before = {key: torch.sin(leaf) for key, leaf in x.items()} if isinstance(x, dict) else torch.sin(x)
        return torch.tanh(2 * self.model(before)).square()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAMILIES else [pytest.mark.slow]) for name in EVERY]
)
def test_a_compiled_model_around_it_is_the_same(name):
    model, x = made(name)
    surrounded = Surrounded(model)
    inputs = [*leaves_of(x), *model.parameters()]
    expected = surrounded(x)
    expected_gradients = torch.autograd.grad(expected.sum(), inputs)
    torch.compiler.reset()
    compiled = torch.compile(surrounded, backend="aot_eager")
    for _ in range(2):  # the second call finds its graphs
        found = compiled(x)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
        for a, b in zip(torch.autograd.grad(found.sum(), inputs), expected_gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_compiler_stops_at_the_solve():
    """Whose branches on values would otherwise end in hundreds of graphs, and a minute of compilation."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    model, x = made("augmented")
    torch.compiler.reset()
    out = torch.compile(Surrounded(model), backend=backend)(x)
    torch.testing.assert_close(out, Surrounded(model)(x), rtol=0, atol=0)
    targets = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert any("sin" in target for target in targets)  # before the model
    assert any("square" in target for target in targets)  # and behind it
    assert len(graphs) < 10


def part_of(x: Any, rank: int) -> Any:
    """The first sample, or all others: batches of different sizes."""
    cut = slice(0, 1) if rank == 0 else slice(1, None)
    return {key: leaf[cut] for key, leaf in x.items()} if isinstance(x, dict) else x[cut]


def fixed(name: str) -> tuple[nn.Module, Any]:
    # Fixed steps: adaptive ones depend on which samples are in the batch.
    return made(name, algorithm=pynode.RK4(steps=3) if "CDE" not in name else pynode.RK4())


def work(rank: int, folder: str, path: list[str], names: tuple[str, ...]) -> None:
    """One of two processes: the gradients that DistributedDataParallel leaves in every model."""
    sys.path[:0] = path
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for name in names:
        model, x = fixed(name)
        parallel = nn.parallel.DistributedDataParallel(model)
        # The mean over the two processes is then the sum over the samples.
        (2 * loss_of(parallel(part_of(x, rank)))).backward()
        found[name] = {key: parameter.grad for key, parameter in model.named_parameters()}
    torch.save(found, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "names", [FAMILIES, pytest.param(tuple(EVERY), marks=pytest.mark.slow)], ids=["families", "every"]
)
def test_two_processes_give_the_gradient_of_one(names):
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("torch without gloo")
    with tempfile.TemporaryDirectory() as folder:
        here = [str(Path(__file__).parent), *sys.path]
        torch.multiprocessing.spawn(work, (folder, here, names), nprocs=2)
        both = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name in names:
        model, x = fixed(name)
        loss_of(model(x)).backward()
        largest = max(p.grad.abs().max().item() for p in model.parameters())
        for key, parameter in model.named_parameters():
            for found in both:
                distance = (found[name][key] - parameter.grad).abs().max().item()
                assert distance < 1e-12 * largest, f"{name}: {key} is off by {distance:.1e} of {largest:.1e}"
