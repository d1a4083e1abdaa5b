"""What a solve keeps for the next one never speaks for another field, state or mode."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch

import pynode
from pynode import DirectAdjoint
from pynode.errors import FieldError
from pynode.layout import Layout, layout_of

T = [0.0, 0.5]


def linear(weight: torch.Tensor) -> torch.nn.Linear:
    module = torch.nn.Linear(2, 2, bias=False, dtype=weight.dtype)
    with torch.no_grad():
        module.weight.copy_(weight)
    return module


class Field(torch.nn.Module):
    """``dy/dt = W y``, the gradient of which ``exact`` knows."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.net = linear(weight)

    def forward(self, t, y):
        return self.net(y)


WEIGHT = torch.tensor([[-0.3, 0.8], [-0.8, -0.1]], dtype=torch.float64)


def exact(weight: torch.Tensor, y0: torch.Tensor) -> torch.Tensor:
    """Gradient of ``sum(y(0.5) ** 2)`` with respect to the weight."""
    own = weight.detach().clone().requires_grad_()
    loss = (y0 @ torch.linalg.matrix_exp(0.5 * own).t()).pow(2).sum()
    return torch.autograd.grad(loss, own)[0]


def loss(f, y0: torch.Tensor, **options) -> torch.Tensor:
    return pynode.solve(f, y0, T, rtol=1e-10, atol=1e-10, **options).ys[-1].pow(2).sum()


def check(f, weight: torch.Tensor, y0: torch.Tensor) -> None:
    (found,) = torch.autograd.grad(loss(f, y0), weight)
    torch.testing.assert_close(found, exact(weight, y0), rtol=1e-7, atol=1e-8)


def test_a_parameter_that_is_replaced_or_switched_on_and_off_counts_at_once():
    y0 = torch.tensor([[1.0, 0.5], [0.2, -1.0]], dtype=torch.float64)
    f = Field(WEIGHT)
    check(f, f.net.weight, y0)
    f.net.weight = torch.nn.Parameter(0.5 * WEIGHT)
    check(f, f.net.weight, y0)
    f.net.weight.requires_grad_(False)
    assert not loss(f, y0).requires_grad
    f.net.weight.requires_grad_(True)
    check(f, f.net.weight, y0)
    f.net = linear(2.0 * WEIGHT)
    check(f, f.net.weight, y0)


def test_a_closure_that_is_rebound_counts_at_once():
    y0 = torch.tensor([1.0, 0.5], dtype=torch.float64)
    weight = WEIGHT.clone().requires_grad_()

    def f(t, y):
        return y @ weight.t()

    check(f, weight, y0)
    weight = (0.5 * WEIGHT).requires_grad_()
    check(f, weight, y0)


def test_another_precision_shape_or_tree_of_the_same_field():
    f = Field(WEIGHT)
    for shape in ((2,), (3, 2), (2, 3, 2)):
        y0 = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        check(f, f.net.weight, y0)
    f.float()
    y0 = torch.tensor([1.0, 0.5])
    sol = pynode.solve(f, y0, T)
    assert sol.ys.dtype is torch.float32
    with pytest.raises(FieldError, match="dtype"):
        pynode.solve(lambda t, y: y.double(), y0, T)
    f.double()
    check(f, f.net.weight, y0.double())


def test_solves_under_modes_and_transforms_leave_nothing_behind():
    f = Field(WEIGHT)
    shape = (5, 2)  # no other test of this file has it: the first to ask is the one under the mode
    y0 = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.inference_mode():
        inside = loss(f, y0.clone())
    check(f, f.net.weight, y0)
    assert loss(f, y0).item() == pytest.approx(inside.item(), rel=1e-12)
    each = torch.func.vmap(lambda y: loss(f, y, sensealg=DirectAdjoint()))(y0[:, None, :])
    assert each.sum().item() == pytest.approx(inside.item(), rel=1e-8)
    mapped = torch.func.grad(lambda y: loss(f, y, sensealg=DirectAdjoint()))(y0)
    own = y0.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(loss(f, own), own)[0], mapped, rtol=1e-8, atol=1e-9)


def test_a_shared_layout_keeps_no_state():
    y0 = torch.randn(7, 3)
    assert layout_of(y0) is layout_of(torch.nn.Parameter(torch.zeros(7, 3)))
    assert layout_of(y0) is not layout_of(y0.double())
    like = layout_of(y0)._like
    assert like is not None
    assert like.untyped_storage().nbytes() == y0.element_size()
    assert isinstance(layout_of((y0,)), Layout)


Pair = namedtuple("Pair", "a b")


def pair(t, y):
    return -y[0], torch.stack([y[1][..., 1], -y[1][..., 0]], dim=-1)


@pytest.mark.parametrize("kind", [tuple, list, Pair._make])
@pytest.mark.parametrize("returned", [tuple, list, Pair._make])
def test_sequences_of_tensors_are_integrated_leaf_by_leaf(kind, returned):
    y0 = kind([torch.ones(3, dtype=torch.float64), torch.tensor([[0.0, 1.0]], dtype=torch.float64)])
    with torch.no_grad():
        ys = pynode.solve(lambda t, y: returned(pair(t, y)), y0, T, rtol=1e-9, atol=1e-9).ys
    assert type(ys) is type(y0)
    t = torch.tensor(0.5, dtype=torch.float64)
    torch.testing.assert_close(ys[0][-1], torch.exp(-t).expand(3), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(ys[1][-1], torch.stack([t.sin(), t.cos()])[None], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(
    ("late", "message"),
    [
        (lambda y: (y[0], y[1], y[1]), "length 3"),
        (lambda y: (y[0], y[1][0]), "shape"),
        (lambda y: (y[0], y[1].float()), "dtype"),
        (lambda y: (y[0], None), "NoneType"),
        (lambda y: {"a": y[0]}, "dict"),
    ],
)
def test_a_sequence_that_changes_its_form_on_the_way_is_refused(late, message):
    y0 = (torch.ones(3, dtype=torch.float64), torch.tensor([[0.0, 1.0]], dtype=torch.float64))
    with pytest.raises(FieldError, match=message), torch.no_grad():
        pynode.solve(lambda t, y: pair(t, y) if t < 0.1 else late(pair(t, y)), y0, T)
