"""``pynode.ensemble``: results and gradients do not depend on the number of processes that solve it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from ensemble_ranks import Field, blowing, inputs, message_of, quickly, solved
from launching import alone, torchrun

import pynode

F64 = torch.float64
#: Gradients that are sums over members: ranks add partial sums, in another order. Rounding of a dozen additions.
ADDED = 1e-13


def same_bits(found: Any, expected: Any, path: str = "") -> None:
    assert type(found) is type(expected), path
    if isinstance(found, dict):
        assert found.keys() == expected.keys()
        for key in found:
            same_bits(found[key], expected[key], f"{path}/{key}")
    elif isinstance(found, list | tuple):
        assert len(found) == len(expected), path
        for index, (x, y) in enumerate(zip(found, expected, strict=True)):
            same_bits(x, y, f"{path}/{index}")
    elif isinstance(found, torch.Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found.nan_to_num(nan=-77.0), expected.nan_to_num(nan=-77.0)), path
    else:
        assert found == expected, path


def check_gradients(found: list[torch.Tensor], expected: list[torch.Tensor], path: str) -> None:
    y0s, rates, *others = found
    same_bits([y0s, rates], expected[:2], path)  # of one member each: nothing is added up but zeros
    for x, y in zip(others, expected[2:], strict=True):
        assert float((x - y).abs().max()) <= ADDED * float(y.abs().max()), path


def check(ranks: int, folder: Path, single: dict[str, Any]) -> None:
    for rank in range(ranks):
        found = torch.load(folder / f"{ranks}-{rank}.pt", weights_only=True)
        for name, expected in single.items():
            if name == "failures":
                check_failures(found[name], expected, ranks, rank)
            elif "gradients" not in expected:
                same_bits(found[name], expected, name)
            else:
                check_gradients(found[name]["gradients"], expected["gradients"], f"{name} {rank}")
                start, stop = found[name]["members"]
                assert (start, stop) == expected["members"] or name == "own sums"
                same_bits(found[name]["ys"], expected["ys"][start:stop], name)
                for key in ("ts", "counts", "codes"):
                    same_bits(found[name][key], expected[key], name)
    if "own sums" in single:
        saved = [torch.load(folder / f"{ranks}-{r}.pt", weights_only=True) for r in range(ranks)]
        stretches = [found["own sums"]["members"] for found in saved]
        assert stretches[0][0] == 0
        assert stretches[-1][1] == 11
        assert all(before[1] == after[0] for before, after in itertools.pairwise(stretches))


def check_failures(found: dict[str, Any], single: dict[str, Any], ranks: int, rank: int) -> None:
    for key in ("ys", "codes"):
        same_bits(found[key], single[key], key)
    kind, words = found["thrown"]
    assert kind == "SolveError"
    assert "2 of 6 members failed" in words
    assert "member 3 (rank" in words
    assert "member 5 (rank" in words
    kind, words = found["raised"]
    assert "no such state" in words
    # The last member is the last rank's: that one raises what f raised, the others say so.
    assert kind == ("ValueError" if rank == ranks - 1 else "PynodeError")
    if rank != ranks - 1:
        assert f"rank {ranks - 1} failed" in words
    kind, words = found["unlike"]
    assert kind == ("InputError" if ranks > 1 else "")
    assert ranks == 1 or "of f is not the same on rank 1" in words


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("single")
    alone("ensemble_ranks.py", folder)
    found: dict[str, Any] = torch.load(folder / "1-0.pt", weights_only=True)
    return found


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    torchrun("ensemble_ranks.py", 2, tmp_path, "quick")
    check(2, tmp_path, quickly())


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_results_and_gradients_do_not_depend_on_the_number_of_ranks(
    ranks: int, single: dict[str, Any], tmp_path: Path
) -> None:
    torchrun("ensemble_ranks.py", ranks, tmp_path)
    check(ranks, tmp_path, single)


def test_an_ensemble_is_a_batch_of_independent_rows() -> None:
    found = solved(batch_size=11)
    field, (y0s, rates, shared) = Field(), inputs(11)
    sol = pynode.solve(field, y0s, [0.0, 0.5, 1.0], args=(pynode.PerSample(rates), shared), batching="independent")
    (sol.ys**2).sum().backward()
    assert torch.equal(found["ys"], sol.ys.transpose(0, 1))
    assert torch.equal(found["counts"][0], sol.row_stats.nfe)
    for x, y in zip(found["gradients"], (y0s, rates, shared, *field.parameters()), strict=True):
        torch.testing.assert_close(x, y.grad, rtol=1e-12, atol=0.0)


def test_values_and_gradients_against_the_solution() -> None:
    y0s = torch.tensor([[1.0], [2.0], [0.5]], dtype=F64, requires_grad=True)
    k = torch.tensor([[0.5], [1.0], [2.0]], dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 0.7, 1.3], dtype=F64, requires_grad=True)
    w = torch.tensor(1.1, dtype=F64, requires_grad=True)
    inputs = (y0s, k, t, w)
    sol = pynode.ensemble(
        lambda s, y, k, w: -w * k * y, y0s, t, args=(pynode.PerSample(k), w), rtol=1e-10, atol=1e-12, batch_size=2
    )
    exact = y0s[:, None] * torch.exp(-w * k[:, None] * (t - t[0])[:, None])
    # Errors of some ten steps, each below the tolerance, and their derivatives.
    torch.testing.assert_close(sol.ys, exact, rtol=1e-8, atol=1e-9)
    found = torch.autograd.grad(sol.ys.pow(3).sum(), inputs)
    for x, y in zip(found, torch.autograd.grad(exact.pow(3).sum(), inputs), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-8)


def test_a_captured_tensor_with_a_history_and_a_kept_graph() -> None:
    w = torch.tensor(0.5, dtype=F64, requires_grad=True)
    rate = w.exp()  # not a leaf
    y0s = torch.tensor([[1.0], [2.0]], dtype=F64)
    sol = pynode.ensemble(lambda t, y: -rate * y, y0s, [0.0, 1.0], rtol=1e-10, atol=1e-12)
    loss = sol.ys[:, -1].sum()
    loss.backward(retain_graph=True)
    expected = -3.0 * torch.exp(-rate.detach()) * rate.detach()
    torch.testing.assert_close(w.grad, expected, rtol=1e-9, atol=0.0)
    loss.backward()
    torch.testing.assert_close(w.grad, 2 * expected, rtol=1e-9, atol=0.0)


def test_what_cannot_be_is_said() -> None:
    y0s = torch.ones(3, 1)
    decay = lambda t, y, *own: -y  # noqa: E731
    weight = torch.ones(1, requires_grad=True)
    calls = {
        "leading dimension 3": lambda: pynode.ensemble(decay, y0s, [0.0, 1.0], args=(pynode.PerSample(torch.ones(2)),)),
        "pass trajectories=N": lambda: pynode.ensemble(decay, lambda i, g: (torch.ones(1), ()), [0.0, 1.0]),
        "requires a gradient": lambda: pynode.ensemble(
            decay, lambda i, g: (torch.ones(1), (weight,)), [0.0, 1.0], trajectories=2
        ),
        "returned a Tensor": lambda: pynode.ensemble(decay, lambda i, g: torch.ones(1), [0.0, 1.0], trajectories=2),
        "has not been initialised": lambda: pynode.ensemble(decay, y0s, [0.0, 1.0], group="gloo"),
        "batch_size=0": lambda: pynode.ensemble(decay, y0s, [0.0, 1.0], batch_size=0),
        "an ensemble with running_cost": lambda: pynode.ensemble(
            decay, y0s, [0.0, 1.0], running_cost=lambda t, y: y.sum()
        ),
    }
    for words, call in calls.items():
        kind, message = message_of(call)
        assert words in message, (words, kind, message)
        assert kind in ("InputError", "GradientError", "UnsupportedError")


def test_a_gradient_is_differentiated_once() -> None:
    y0s = torch.ones(2, 1, requires_grad=True)
    ys = pynode.ensemble(lambda t, y: -y, y0s, [0.0, 1.0]).ys
    with pytest.raises(pynode.GradientError, match="create_graph=True"):
        torch.autograd.grad(ys.sum(), y0s, create_graph=True)


def test_a_failed_member_is_nan_or_raises() -> None:
    start = torch.tensor([[0.1], [2.0], [0.2]], dtype=F64)
    with pytest.raises(pynode.SolveError, match=r"1 of 3 members failed .*member 1 \(rank 0\) at t = 0\.5") as caught:
        pynode.ensemble(blowing, start, [0.0, 1.0])
    assert not caught.value.retcode.successful
    for batching in ("independent", "joint"):
        sol = pynode.ensemble(blowing, start, [0.0, 1.0], throw=False, batching=batching, batch_size=1)
        assert sol.ys[1, -1].isnan().all()
        assert torch.allclose(sol.ys[[0, 2], -1], start[[0, 2]] / (1 - start[[0, 2]]), rtol=1e-4)
        assert [x.successful for x in sol.retcodes] == [True, False, True]
        assert sol.retcode is sol.retcodes[1]
    # The first of all, which alone tells how many times there are.
    sol = pynode.ensemble(blowing, start.flip(0)[1:], [0.0, 0.2, 1.0], throw=False, batching="joint", batch_size=1)
    assert sol.ys.shape == (2, 3, 1)
    assert sol.ts.tolist() == [0.0, 0.2, 1.0]
    assert sol.ys[0].isnan().flatten().tolist() == [False, False, True]
    assert not sol.ys[1].isnan().any()
