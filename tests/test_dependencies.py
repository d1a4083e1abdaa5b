"""What a gradient is owed to: every way a tensor can get into a field, compared with torch's own tape."""

from __future__ import annotations

import functools
import threading
import types
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import pynode
from pynode import BacksolveAdjoint, CheckpointedAdjoint, DirectAdjoint, GradientError
from pynode.dependencies import captured_tensors

GLOBAL = torch.tensor([[0.3, -0.7], [0.9, 0.1]], dtype=torch.float64, requires_grad=True)
SPACE = types.ModuleType("space")
SPACE.matrix = GLOBAL

TOLERANCE = 1e-9
each_untaped = pytest.mark.parametrize(
    "sensealg", [CheckpointedAdjoint(), BacksolveAdjoint()], ids=["checkpointed", "backsolve"]
)


def start() -> Tensor:
    return torch.tensor([0.5, -0.3], dtype=torch.float64, requires_grad=True)


def matrix() -> Tensor:
    return GLOBAL.detach().clone().requires_grad_()


def with_global(t, y):
    return torch.tanh(y @ GLOBAL)


def with_global_in_a_generator(t, y):
    return sum(torch.tanh(y @ w) for w in (GLOBAL for _ in range(1)))


def with_module_attribute(t, y):
    return torch.tanh(y @ SPACE.matrix)


def with_default(t, y, w=GLOBAL):
    return torch.tanh(y @ w)


class Plain:
    """Not a module: a bound method, a callable, a class attribute, a property."""

    shared = GLOBAL

    def __init__(self, w: Tensor) -> None:
        self._deep = {"list": [w]}

    @property
    def w(self) -> Tensor:
        return self._deep["list"][0]

    def field(self, t, y):
        return torch.tanh(y @ self.w)

    def __call__(self, t, y):
        return self._helper(y)

    def _helper(self, y):
        return torch.tanh(y @ self.shared) + torch.sin(y @ self.w)


class Hyper(torch.nn.Module):
    """Holds a tensor with a history as an attribute, as a conditioned field does."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.inner = torch.nn.Linear(1, 2).double(), torch.nn.Linear(2, 2).double()
        self.context: list[Tensor] = []

    def condition(self, x: Tensor) -> Hyper:
        self.context = [torch.tanh(self.encoder(x))]
        return self

    def forward(self, t, y):
        return torch.tanh(self.inner(y)) + self.context[0] * torch.sin(y)


def a_global() -> tuple:
    return with_global, (), [GLOBAL]


def a_global_in_a_generator() -> tuple:
    return with_global_in_a_generator, (), [GLOBAL]


def a_global_modules_attribute() -> tuple:
    return with_module_attribute, (), [GLOBAL]


def a_default() -> tuple:
    return with_default, (), [GLOBAL]


def a_closure_over_a_leaf() -> tuple:
    w = matrix()
    return lambda t, y: torch.tanh(y @ w), (), [w]


def a_returned_leaf() -> tuple:
    w = matrix()[0].detach().requires_grad_()
    return lambda t, y: w, (), [w]


def a_hypernetwork() -> tuple:
    net = torch.nn.Linear(1, 4).double()
    w = net(torch.ones(1, dtype=torch.float64)).reshape(2, 2)
    return lambda t, y: torch.tanh(y @ w), (), list(net.parameters())


def two_parts_of_one_output() -> tuple:
    net = torch.nn.Linear(1, 4).double()
    a, b = net(torch.ones(1, dtype=torch.float64)).split(2)
    return lambda t, y: a * torch.tanh(y) + b, (), list(net.parameters())


def an_encoder_beside_a_parameter() -> tuple:
    encoder, inner = torch.nn.Linear(1, 2).double(), torch.nn.Linear(2, 2).double()
    code = torch.tanh(encoder(torch.ones(1, dtype=torch.float64)))
    return lambda t, y: torch.tanh(inner(y)) * code, (), [*encoder.parameters(), *inner.parameters()]


def a_partial() -> tuple:
    w, v = matrix(), matrix()
    return functools.partial(lambda w, t, y, v: torch.tanh(y @ w) + torch.sin(y @ v), w, v=v), (), [w, v]


def a_bound_method() -> tuple:
    plain = Plain(matrix())
    return plain.field, (), [plain.w]


def a_callable_object() -> tuple:
    plain = Plain(torch.exp(matrix()))
    root = plain.w.grad_fn.next_functions[0][0].variable
    return plain, (), [root, GLOBAL]


def a_wrapped_function() -> tuple:
    w = matrix()
    inner = lambda t, y: torch.tanh(y @ w)  # noqa: E731
    return functools.wraps(inner)(lambda *args: inner(*args)), (), [w]


def a_module_with_a_computed_attribute() -> tuple:
    module = Hyper().condition(torch.ones(1, dtype=torch.float64))
    return module, (), list(module.parameters())


def a_module_in_args() -> tuple:
    module = torch.nn.Linear(2, 2).double()
    return lambda t, y, net: torch.tanh(net(y)), (module,), list(module.parameters())


def a_dictionary_in_args() -> tuple:
    w, b = matrix(), start()
    return lambda t, y, p: torch.tanh(y @ p["w"] + p["inner"][0]), ({"w": w, "inner": (b, "text", 3)},), [w, b]


def computed_args() -> tuple:
    w = matrix()
    return lambda t, y, v, s: torch.tanh(y @ v) * s, (torch.exp(w), w.sum()), [w]


def an_argument_that_is_captured_too() -> tuple:
    module = torch.nn.Linear(2, 2).double()
    return lambda t, y, w: torch.tanh(module(y)) + torch.sin(y @ w), (module.weight,), list(module.parameters())


def a_parametrized_module() -> tuple:
    module = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(2, 2).double())
    return lambda t, y: torch.tanh(module(y)), (), list(module.parameters())


def a_stale_product_of_an_earlier_call() -> tuple:
    class Stale(torch.nn.Module):  # as the old weight_norm does
        def __init__(self) -> None:
            super().__init__()
            self.g = torch.nn.Parameter(matrix().detach())

        def forward(self, t, y):
            self.weight = torch.exp(self.g)
            return torch.tanh(y @ self.weight)

    module = Stale()
    module(0.0, start())
    return module, (), [module.g]


def a_differentiated_energy() -> tuple:
    w = matrix()

    def f(t, y):
        with torch.enable_grad():
            y = y if y.requires_grad else y.detach().requires_grad_()
            (slope,) = torch.autograd.grad(torch.cos(y @ w).sum(), y, create_graph=True)
        return -slope

    return f, (), [w]


CASES = [
    *(a_global, a_global_in_a_generator, a_global_modules_attribute, a_default, a_closure_over_a_leaf),
    *(a_returned_leaf, a_hypernetwork, two_parts_of_one_output, an_encoder_beside_a_parameter, a_partial),
    *(a_bound_method, a_callable_object, a_wrapped_function, a_module_with_a_computed_attribute, a_module_in_args),
    *(a_dictionary_in_args, computed_args, an_argument_that_is_captured_too, a_parametrized_module),
    *(a_stale_product_of_an_earlier_call, a_differentiated_energy),
]


def gradients(f: Callable, args: tuple, leaves: list[Tensor], sensealg, **options) -> list[Tensor]:
    y0 = start()
    sol = pynode.solve(f, y0, [0.0, 0.4, 1.0], args=args, sensealg=sensealg, rtol=TOLERANCE, atol=TOLERANCE, **options)
    return list(torch.autograd.grad(sol.ys.pow(2).sum(), [y0, *leaves], retain_graph=True, allow_unused=True))


def agree(found: list[Tensor], expected: list[Tensor], sensealg) -> None:
    # Rounding for the exact adjoint. (The steps are the same up to the rounding of an error estimate, 1e-16 / 1e-9,
    # times the effect of a step on the solution, 1e-9.) Backsolve: 50 steps of local error 2e-9 in state and adjoint,
    # growing by at most exp(2).
    bound = 1e-12 if isinstance(sensealg, CheckpointedAdjoint) else 2 * 50 * 2e-9 * 8
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=bound, atol=bound)


@each_untaped
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_every_way_into_a_field(case, sensealg) -> None:
    torch.manual_seed(0)
    f, args, leaves = case()
    expected = gradients(f, args, leaves, DirectAdjoint(), dt0=0.1)
    assert all(g is not None and g.any() for g in expected)
    agree(gradients(f, args, leaves, sensealg, dt0=0.1), expected, sensealg)


@each_untaped
@pytest.mark.parametrize("computed", [False, True], ids=["leaf", "computed"])
def test_closure_over_y0_itself(sensealg, computed) -> None:
    def run(sensealg):
        root = start()
        y0 = torch.sin(root) if computed else root
        sol = pynode.solve(
            lambda t, y: y0 * torch.cos(y), y0, [0.0, 1.0], sensealg=sensealg, rtol=TOLERANCE, atol=TOLERANCE, dt0=0.1
        )
        return list(torch.autograd.grad(sol.ys[-1].sum(), [root]))

    agree(run(sensealg), run(DirectAdjoint()), sensealg)


@each_untaped
@pytest.mark.parametrize("elsewhere", ["encoder", "solve", "both"])
def test_tensors_computed_in_another_thread(sensealg, elsewhere) -> None:
    # Torch numbers graph nodes in each thread anew.
    w = matrix()
    box: dict[str, object] = {}

    def encode() -> None:
        box["z"] = torch.sin(torch.exp(w))

    def differentiate() -> None:
        z = box["z"]
        box["found"] = gradients(lambda t, y: torch.tanh(y @ z), (), [w], sensealg, dt0=0.1)

    for job, name in ((encode, "encoder"), (differentiate, "solve")):
        if elsewhere in (name, "both"):
            thread = threading.Thread(target=job)
            thread.start()
            thread.join()
        else:
            job()
    expected = gradients(lambda t, y: torch.tanh(y @ torch.sin(torch.exp(w))), (), [w], DirectAdjoint(), dt0=0.1)
    agree(box["found"], expected, sensealg)


@each_untaped
def test_a_module_whose_tensor_comes_from_another_thread(sensealg) -> None:
    torch.manual_seed(0)
    module = Hyper()
    x = torch.ones(1, dtype=torch.float64)
    thread = threading.Thread(target=lambda: module.condition(x))
    thread.start()
    thread.join()
    found = gradients(module, (), list(module.parameters()), sensealg, dt0=0.1)
    expected = gradients(module.condition(x), (), list(module.parameters()), DirectAdjoint(), dt0=0.1)
    agree(found, expected, sensealg)


# ------------------------------------------------------------------------------------------------- refused, not silent


class Hidden:
    """No ``__dict__`` to look into."""

    __slots__ = ("value",)

    def __init__(self, value: Tensor) -> None:
        self.value = value


@each_untaped
def test_a_parameter_reached_directly_and_through_a_captured_tensor(sensealg) -> None:
    w = matrix()
    z = torch.exp(w)
    with pytest.raises(
        GradientError, match=r"parameter of shape \(2, 2\) both directly.*counted twice.*args=\(tensor,"
    ):
        gradients(lambda t, y: torch.tanh(y @ z) + y @ w, (), [w], sensealg)
    found = gradients(lambda t, y, z: torch.tanh(y @ z) + y @ w, (z,), [w], sensealg, dt0=0.1)
    expected = gradients(lambda t, y: torch.tanh(y @ torch.exp(w)) + y @ w, (), [w], DirectAdjoint(), dt0=0.1)
    agree(found, expected, sensealg)


@each_untaped
def test_a_captured_tensor_computed_from_another_one(sensealg) -> None:
    w = matrix()
    z = torch.exp(w)
    v = 2 * z
    with pytest.raises(GradientError, match=r"captured tensor of shape \(2, 2\) both directly.*twice.*args=\(tensor,"):
        gradients(lambda t, y: torch.tanh(y @ z) + y @ v, (), [w], sensealg)


@each_untaped
def test_a_hidden_computed_tensor_is_an_error_that_names_args(sensealg) -> None:
    hidden = Hidden(torch.exp(matrix()))
    with pytest.raises(GradientError, match=r"ExpBackward0.*to be reachable.*args=\(tensor,\).*params=\[tensor\]"):
        gradients(lambda t, y: torch.tanh(y @ hidden.value), (), [], sensealg)


@each_untaped
def test_a_hidden_computed_tensor_can_be_named(sensealg) -> None:
    w = matrix()
    hidden = Hidden(torch.exp(w))
    f = lambda t, y: torch.tanh(y @ hidden.value)  # noqa: E731
    found = gradients(f, (), [w], sensealg, params=[hidden.value], dt0=0.1)
    agree(found, gradients(f, (), [w], DirectAdjoint(), dt0=0.1), sensealg)


@each_untaped
def test_a_hidden_leaf_needs_no_name(sensealg) -> None:
    w = matrix()
    hidden = Hidden(w)
    f = lambda t, y: torch.tanh(y @ hidden.value)  # noqa: E731
    agree(gradients(f, (), [w], sensealg, dt0=0.1), gradients(f, (), [w], DirectAdjoint(), dt0=0.1), sensealg)


# One step over a jump is not reconstructed backward; that is not the point here.
each_unchecked = pytest.mark.parametrize(
    "sensealg",
    [CheckpointedAdjoint(), BacksolveAdjoint(reconstruction_rtol=None)],
    ids=["checkpointed", "backsolve"],
)


@each_unchecked
@pytest.mark.parametrize("algorithm", [pynode.Tsit5(), pynode.RK4(steps=1)], ids=lambda a: a.name)
@pytest.mark.parametrize("window", [(0.3, 2.0), (0.4, 0.6)], ids=["late", "between"])
def test_a_hidden_leaf_used_only_later_is_an_error(sensealg, algorithm, window) -> None:
    w = matrix()
    hidden = Hidden(w)

    def f(t, y):
        return torch.tanh(y @ hidden.value) if window[0] < t < window[1] else -y

    options = {"sensealg": sensealg, "algorithm": algorithm, "d_discontinuities": [x for x in window if x < 1]}
    sol = pynode.solve(f, start(), [0.0, 1.0], **options)
    with pytest.raises(GradientError, match=r"shape \(2, 2\) that it did not reach at the initial time.*params=\["):
        sol.ys[-1].sum().backward()
    sol = pynode.solve(f, start(), [0.0, 1.0], params=[w], **options)
    sol.ys[-1].sum().backward()
    assert w.grad.any()


@each_unchecked
def test_a_leaf_in_a_modules_list_used_only_in_a_later_stage(sensealg) -> None:
    class Extra(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.extra = torch.nn.Linear(2, 2).double(), [matrix()]

        def forward(self, t, y):
            return self.linear(y) + (y @ self.extra[0] if t > 0.1 else 0)

    module = Extra()
    pynode.solve(module, start(), [0.0, 1.0], algorithm=pynode.RK4(steps=1), sensealg=sensealg).ys[-1].sum().backward()
    assert module.extra[0].grad.any()


def test_a_value_cached_by_the_first_evaluation_is_an_error() -> None:
    w, cache = matrix(), []

    def f(t, y):
        if not cache:
            cache.append(torch.exp(w))
        return torch.tanh(y @ cache[0])

    sol = pynode.solve(f, start(), [0.0, 1.0])
    with pytest.raises(GradientError, match=r"an earlier evaluation.*\(a cache\).*args=\(tensor,\)"):
        sol.ys[-1].sum().backward()


# ---------------------------------------------------------------------------------------------------------- params=


@each_untaped
def test_explicit_parameters_leave_the_others_alone(sensealg) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh(), torch.nn.Linear(2, 2)).double()
    f = lambda t, y: module(y)  # noqa: E731
    chosen = [module[0].weight]
    expected = gradients(f, (), chosen, DirectAdjoint(), dt0=0.1)
    sol = pynode.solve(
        f, start(), [0.0, 0.4, 1.0], params=iter(chosen), sensealg=sensealg, rtol=1e-9, atol=1e-9, dt0=0.1
    )
    sol.ys.pow(2).sum().backward()
    agree([module[0].weight.grad], expected[1:], sensealg)
    assert module[2].weight.grad is None


@each_untaped
def test_an_explicit_parameter_that_f_does_not_use_is_an_error(sensealg) -> None:
    w, unused = matrix(), torch.ones(3, requires_grad=True)
    sol = pynode.solve(lambda t, y: torch.tanh(y @ w), start(), [0.0, 1.0], params=[w, unused], sensealg=sensealg)
    with pytest.raises(GradientError, match=r"shape \(3,\) requires a gradient.*differentiable.*requires_grad=False"):
        sol.ys[-1].sum().backward()
    sol = pynode.solve(
        lambda t, y: torch.tanh(y @ w), start(), [0.0, 1.0], params=[w, unused], sensealg=sensealg, allow_unused=True
    )
    sol.ys[-1].sum().backward()
    assert unused.grad.tolist() == [0.0, 0.0, 0.0]


@each_untaped
def test_an_explicit_parameter_given_in_args_too(sensealg) -> None:
    w = matrix()
    found = gradients(lambda t, y, w: torch.tanh(y @ w), (w,), [w], sensealg, params=[w], dt0=0.1)
    expected = gradients(lambda t, y, w: torch.tanh(y @ w), (w,), [w], DirectAdjoint(), dt0=0.1)
    agree(found, expected, sensealg)


@pytest.mark.parametrize("wrong", [torch.ones(2), 3.0], ids=["frozen", "float"])
def test_explicit_parameters_must_require_a_gradient(wrong) -> None:
    with pytest.raises(GradientError, match=r"params\[1\] has (requires_grad=False|float).*drop it from params="):
        pynode.solve(lambda t, y: -y, start(), [0.0, 1.0], params=[matrix(), wrong])


def test_no_parameter_at_all() -> None:
    y0 = start()
    pynode.solve(lambda t, y: torch.tanh(y @ GLOBAL), y0, [0.0, 1.0], params=[]).ys[-1].sum().backward()
    assert y0.grad is not None
    assert GLOBAL.grad is None


# ------------------------------------------------------------------------------------------------------- the search


def test_search_follows_cycles_and_skips_what_needs_no_gradient() -> None:
    w = matrix()
    loop: list = [w, torch.ones(2), {"k": (w, None, "s", 3)}]
    loop.append(loop)
    assert list(captured_tensors([loop])) == [w]


def test_search_survives_an_empty_closure_cell() -> None:
    def outer():
        def inner(t, y):
            return later

        if False:
            later = 1
        return inner

    assert list(captured_tensors([outer()])) == []
