"""States that are trees, complex, or without dimensions."""

from __future__ import annotations

import collections
from typing import NamedTuple

import pytest
import torch

import pynode
from pynode.layout import Layout

REAL = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
MATRIX = torch.arange(6.0, dtype=torch.float64).reshape(2, 3) + 1.0
COMPLEX = torch.tensor([[1.0 + 2.0j], [-0.5j]], dtype=torch.complex128)
SCALAR = torch.tensor(3.0, dtype=torch.float64)


class State(NamedTuple):
    position: object
    velocity: object


def _default() -> collections.defaultdict:
    tree = collections.defaultdict(list)
    tree["a"] = REAL
    return tree


TREES = {
    "tensor": MATRIX,
    "scalar": SCALAR,
    "complex": COMPLEX,
    "complex scalar": torch.tensor(1.0 - 1.0j, dtype=torch.complex128),
    "tuple": (REAL, MATRIX),
    "one-tuple": (MATRIX,),
    "list": [MATRIX, SCALAR],
    "dict": {"b": REAL, "a": SCALAR},
    "namedtuple": State(REAL, MATRIX),
    "nested": {"x": (REAL, [SCALAR, {"y": MATRIX}]), "z": State(SCALAR, (REAL,))},
    "empty branches": (REAL, (), {}, [SCALAR]),
    "empty leaf": (REAL, torch.empty(0, 2, dtype=torch.float64)),
    # An odd number of reals before a complex leaf: its pairs are not aligned in the flat vector.
    "real before complex": (REAL, COMPLEX, SCALAR, COMPLEX),
    "complex before real": (COMPLEX, REAL),
    "ordered": collections.OrderedDict(b=REAL, a=COMPLEX),
    "defaultdict": _default(),
}
every_tree = pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
both_directions = pytest.mark.parametrize("sign", [1.0, -1.0], ids=["forward", "reversed"])


def mapped(function, *trees):
    """The trees with ``function`` applied leaf by leaf; written apart from pynode's own."""
    first = trees[0]
    if isinstance(first, dict):
        return {key: mapped(function, *(tree[key] for tree in trees)) for key in first}
    if isinstance(first, (tuple, list)):
        return [mapped(function, *branches) for branches in zip(*trees, strict=True)]
    return function(*trees)


def same(actual, expected, check):
    """Structure and types equal, leaves as ``check`` asserts."""
    assert type(actual) is type(expected)
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key in expected:
            same(actual[key], expected[key], check)
    elif isinstance(expected, (tuple, list)):
        assert len(actual) == len(expected)
        for pair in zip(actual, expected, strict=True):
            same(*pair, check)
    else:
        assert actual.dtype == expected.dtype
        check(actual, expected)


def equal(actual, expected):
    assert torch.equal(actual, expected)


@every_tree
def test_pack_and_unpack_are_inverse(tree):
    layout = Layout(tree)
    flat = layout.pack(tree)
    assert flat.shape == (layout.size,)
    assert flat.dtype == torch.float64
    same(layout.unpack(flat), tree, equal)


@every_tree
@pytest.mark.parametrize("lead", [(1,), (4,), (2, 3)])
def test_unpack_keeps_leading_dimensions(tree, lead):
    layout = Layout(tree)
    rows = torch.arange(1.0, 1.0 + torch.Size(lead).numel(), dtype=torch.float64).reshape(*lead, 1)
    flat = layout.pack(tree) * rows

    def check(actual, expected):
        factors = rows.reshape(lead + (1,) * expected.ndim)
        assert torch.equal(actual, expected * factors)

    same(layout.unpack(flat), tree, check)


@every_tree
def test_pack_and_unpack_are_differentiable(tree):
    layout = Layout(tree)
    flat = layout.pack(tree).clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: layout.pack(layout.unpack(x)), (flat,))


@every_tree
@both_directions
def test_solving_a_tree_is_solving_its_leaves(tree, sign):
    """y' = -y on every leaf, exp(-t) times the start; and the result has the type of the start."""
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64) * sign
    sol = pynode.solve(lambda t, y: mapped(torch.neg, y), tree, t, rtol=1e-9, atol=1e-11)

    def check(actual, expected):
        assert actual.shape == (3, *expected.shape)
        exact = torch.exp(-t).reshape(3, *[1] * expected.ndim) * expected
        # At most 100 steps of error 1e-11 + 1e-9 * |y|, |y| <= 6 e, in the root mean square of at most 11 numbers.
        torch.testing.assert_close(actual, exact, rtol=0, atol=100 * 11**0.5 * 1.7e-8)

    same(sol.ys, tree, check)
    same(sol(0.5 * sign), tree, lambda actual, expected: None)
    assert sol.stats.forward.accepted < 100


@every_tree
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_precision(tree, dtype):
    y0 = Layout(tree).unpack(Layout(tree).pack(tree))
    y0 = mapped(lambda x: x.to(dtype.to_complex() if x.is_complex() else dtype), y0)
    seen = set()

    def f(t, y):
        seen.add(t.dtype)
        return mapped(lambda x: x * 0.5, y)

    sol = pynode.solve(f, y0, [0.0, 1.0])
    mapped(lambda end, start: torch.testing.assert_close(end[-1], start * 1.6487213, rtol=1e-3, atol=0), sol.ys, y0)
    assert seen == {dtype}
    mapped(lambda end, start: end.dtype == start.dtype or pytest.fail("dtype"), sol.ys, y0)


def test_dictionaries_are_matched_by_key_not_by_order():
    y0 = {"x": torch.tensor([1.0, 0.0], dtype=torch.float64), "v": torch.tensor([0.0, 1.0], dtype=torch.float64)}

    def f(t, y):
        assert list(y) == ["x", "v"]
        return {"v": -y["x"], "x": y["v"]}

    sol = pynode.solve(f, y0, [0.0, 2.0], rtol=1e-8, atol=1e-8)
    assert list(sol.ys) == ["x", "v"]
    cos, sin = torch.cos(torch.tensor(2.0)).item(), torch.sin(torch.tensor(2.0)).item()
    exact = torch.tensor([cos, sin], dtype=torch.float64)
    torch.testing.assert_close(sol.ys["x"][-1], exact, rtol=0, atol=1e-6)


def test_f_may_return_a_list_for_a_tuple():
    y0 = (REAL, SCALAR)
    sol = pynode.solve(lambda t, y: [-y[0], -y[1]], y0, [0.0, 1.0])
    assert type(sol.ys) is tuple


@pytest.mark.parametrize("returned", [0, 1, 2, 3])
def test_a_derivative_of_another_form_is_named(returned):
    wrong = [
        {"a": REAL},
        {"a": REAL, "b": (SCALAR,), "c": SCALAR},
        {"a": REAL, "b": SCALAR},
        {"a": REAL[:2], "b": (SCALAR,)},
    ]
    with pytest.raises(pynode.FieldError, match="y"):
        pynode.solve(lambda t, y: wrong[returned], {"a": REAL, "b": (SCALAR,)}, [0.0, 1.0])


@pytest.mark.parametrize(
    "y0",
    [
        REAL.expand(4, 3),
        MATRIX.t(),
        MATRIX[:, ::2],
        COMPLEX.conj(),
        COMPLEX.expand(2, 3).t(),
        COMPLEX.conj().imag,
        torch.nn.Parameter(REAL),
    ],
    ids=["expanded", "transposed", "strided", "conjugated", "expanded complex", "negative bit", "parameter"],
)
def test_states_of_any_memory_layout(y0):
    plain = y0.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    with torch.no_grad():
        sol = pynode.solve(lambda t, y: -y, y0, [0.0, 1.0])
        expected = pynode.solve(lambda t, y: -y, plain, [0.0, 1.0])
    assert torch.equal(sol.ys, expected.ys)


@pytest.mark.parametrize(
    "form",
    [
        lambda y: y,
        lambda y: y.t().contiguous().t(),
        lambda y: y.clone().resolve_conj(),
        lambda y: y.clone().conj().conj(),
    ],
    ids=["the state itself", "transposed memory", "resolved", "conjugated twice"],
)
@pytest.mark.parametrize("y0", [MATRIX, COMPLEX], ids=["real", "complex"])
def test_derivatives_of_any_memory_layout(y0, form):
    """y' = y in any clothes."""
    sol = pynode.solve(lambda t, y: form(y), y0, [0.0, 1.0], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(sol.ys[-1], y0 * torch.e, rtol=1e-6, atol=1e-6)


def test_a_derivative_with_the_conjugate_bit():
    """z' = conj(z): real part grows, imaginary part decays."""
    sol = pynode.solve(lambda t, z: z.conj(), COMPLEX, [0.0, 1.0], rtol=1e-8, atol=1e-8)
    exact = torch.complex(COMPLEX.real * torch.e, COMPLEX.imag / torch.e)
    torch.testing.assert_close(sol.ys[-1], exact, rtol=1e-6, atol=1e-6)


def test_a_derivative_that_is_expanded():
    sol = pynode.solve(lambda t, y: torch.ones(1, dtype=y.dtype).expand(3), REAL, [0.0, 1.0])
    torch.testing.assert_close(sol.ys[-1], REAL + 1.0)


def test_one_precision_for_the_whole_tree():
    with pytest.raises(pynode.InputError, match=r"y0\[1\]"):
        Layout((REAL, REAL.float()))
    with pytest.raises(pynode.InputError, match="precision"):
        Layout({"a": REAL, "b": COMPLEX.to(torch.complex64)})


def test_equal_up_to_the_way_it_is_written():
    """A complex equation and its real and imaginary parts as a tuple take the same steps to the same bits."""
    z0 = torch.tensor(1.0 + 0.5j, dtype=torch.complex128)
    whole = pynode.solve(lambda t, z: z * (2.0j - t), z0, [0.0, 2.0])
    pair = pynode.solve(
        lambda t, y: (-2.0 * y[1] - t * y[0], 2.0 * y[0] - t * y[1]), (z0.real.clone(), z0.imag.clone()), [0.0, 2.0]
    )
    assert whole.stats.forward == pair.stats.forward
    torch.testing.assert_close(whole.ys, torch.complex(*pair.ys), rtol=1e-13, atol=0)
