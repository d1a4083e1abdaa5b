"""NeuralODE as a module: parameters, serialisation, options."""

from __future__ import annotations

import collections
import copy
import io
import pickle
import threading

import pytest
import torch

import pynode
from pynode.nn import NeuralODE


class Net(torch.nn.Module):
    def __init__(self, size: int = 2) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(size, size)

    def forward(self, t, y, scale=1.0):
        return torch.tanh(self.linear(y)) * scale


@pytest.fixture
def ode() -> NeuralODE:
    torch.manual_seed(0)
    return NeuralODE(Net())


Y0 = torch.tensor([[0.5, -0.3], [0.1, 0.8]])
Pair = collections.namedtuple("Pair", "q p")


def test_state_dict_names_every_parameter_once(ode) -> None:
    assert list(ode.state_dict()) == ["f.linear.weight", "f.linear.bias"]
    assert [name for name, _ in ode.named_parameters()] == ["f.linear.weight", "f.linear.bias"]
    ode(Y0).sum().backward()
    assert list(ode.state_dict()) == ["f.linear.weight", "f.linear.bias"]


def test_a_plain_function_has_no_parameters() -> None:
    ode = NeuralODE(lambda t, y: -y)
    assert list(ode.parameters()) == []
    torch.testing.assert_close(ode(Y0), Y0 * torch.exp(torch.tensor(-1.0)), rtol=1e-4, atol=0)


def test_forward_equals_solve(ode) -> None:
    sol = pynode.solve(ode.f, Y0, [0.0, 1.0])
    torch.testing.assert_close(ode(Y0), sol.ys[-1], rtol=0, atol=0)
    torch.testing.assert_close(ode.solve(Y0).ys, sol.ys, rtol=0, atol=0)


def test_trajectory_has_the_times_first(ode) -> None:
    ts = torch.linspace(0, 2, 5)
    ys = ode.trajectory(Y0, ts)
    assert ys.shape == (5, 2, 2)
    torch.testing.assert_close(ys, pynode.solve(ode.f, Y0, ts).ys, rtol=0, atol=0)
    torch.testing.assert_close(ys[0], Y0, rtol=0, atol=0)


def test_gradients_equal_those_of_solve(ode) -> None:
    y0 = Y0.clone().requires_grad_()
    ode(y0).pow(2).sum().backward()
    expected = torch.autograd.grad(
        pynode.solve(ode.f, y0, [0.0, 1.0]).ys[-1].pow(2).sum(), [y0, ode.f.linear.weight, ode.f.linear.bias]
    )
    for x, g in zip((y0, ode.f.linear.weight, ode.f.linear.bias), expected, strict=True):
        torch.testing.assert_close(x.grad, g, rtol=0, atol=0)


def test_args_reach_the_field_and_are_differentiated(ode) -> None:
    scale = torch.tensor(2.0, requires_grad=True)
    torch.testing.assert_close(ode(Y0, scale), NeuralODE(ode.f, (0.0, 2.0))(Y0), rtol=0, atol=1e-4)  # default tolerance
    ode(Y0, scale).sum().backward()
    assert scale.grad.abs() > 0
    assert ode.trajectory(Y0, [0.0, 0.5], scale).shape == (2, 2, 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda y: (y, y[0]),
        lambda y: [y, y[0]],
        lambda y: {"q": y, "p": (y[0],)},
        lambda y: Pair(y, y[0]),
    ],
    ids=["tuple", "list", "dict", "namedtuple"],
)
def test_trees_keep_their_type(make) -> None:
    def f(t, y):
        leaves, spec = torch.utils._pytree.tree_flatten(y)
        return torch.utils._pytree.tree_unflatten([-leaf for leaf in leaves], spec)

    y0 = make(Y0)
    out = NeuralODE(f)(y0)
    assert type(out) is type(y0)
    before, after = (torch.utils._pytree.tree_leaves(x) for x in (y0, out))
    assert [x.shape for x in before] == [x.shape for x in after]


def test_deepcopy_is_independent(ode) -> None:
    twin = copy.deepcopy(ode)
    torch.testing.assert_close(twin(Y0), ode(Y0), rtol=0, atol=0)
    with torch.no_grad():
        twin.f.linear.weight.add_(1)
    assert not torch.equal(twin(Y0), ode(Y0))
    ode(Y0).sum().backward()
    assert twin.f.linear.weight.grad is None


def configured() -> NeuralODE:
    torch.manual_seed(1)
    return NeuralODE(
        Net(),
        (0.0, 0.5, 2.0),
        algorithm="dopri5",
        sensealg=pynode.BacksolveAdjoint(norm="full"),
        rtol=1e-4,
        atol=1e-6,
        controller=pynode.PIController(),
        max_steps=500,
    )


@pytest.mark.parametrize("after_use", [False, True], ids=["fresh", "used"])
def test_pickle_and_torch_save_keep_everything(after_use) -> None:
    ode = configured()
    if after_use:
        ode(Y0).sum().backward()
    file = io.BytesIO()
    torch.save(ode, file)
    file.seek(0)
    for twin in (pickle.loads(pickle.dumps(ode)), torch.load(file, weights_only=False)):
        assert twin.algorithm == ode.algorithm == pynode.DP5()
        assert twin.sensealg == ode.sensealg
        assert twin.options == ode.options
        assert (twin.t, twin.rtol, twin.atol) == (ode.t, ode.rtol, ode.atol)
        torch.testing.assert_close(twin(Y0), ode(Y0), rtol=0, atol=0)


def test_state_dict_round_trip_with_weights_only() -> None:
    ode, other = configured(), NeuralODE(Net())
    file = io.BytesIO()
    torch.save(ode.state_dict(), file)
    file.seek(0)
    assert not torch.equal(other.f.linear.weight, ode.f.linear.weight)
    other.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(other.f.linear.weight, ode.f.linear.weight, rtol=0, atol=0)


def test_to_float64(ode) -> None:
    twin = copy.deepcopy(ode).to(torch.float64)
    out = twin(Y0.double())
    assert out.dtype == torch.float64
    torch.testing.assert_close(out.float(), ode(Y0), rtol=0, atol=1e-5)  # float32 rounding; the tolerances are equal
    with pytest.raises(pynode.FieldError, match=r"float32|dtype|double") as caught:
        NeuralODE(lambda t, y: y.double())(Y0)
    assert "torch.float64" in str(caught.value)


def test_options_are_plain_attributes(ode) -> None:
    loose = ode.solve(Y0).stats.forward.nfe
    ode.rtol, ode.atol, ode.algorithm = 1e-6, 1e-7, pynode.BS3()
    assert ode.solve(Y0).stats.forward.nfe > loose
    ode.algorithm, ode.t = pynode.RK4(steps=4), (1.0, 0.0)
    assert ode.solve(Y0).stats.forward.accepted == 4


def test_times_may_be_a_differentiable_tensor(ode) -> None:
    ode.t = torch.tensor([0.0, 1.0], requires_grad=True)
    ode(Y0).sum().backward()
    assert ode.t.grad.abs().min() > 0
    assert "t=[0.0, 1.0]" in repr(ode)


def test_repr_names_what_was_chosen() -> None:
    text = repr(configured())
    for word in ("t=[0.0, 0.5, 2.0]", "DP5", "BacksolveAdjoint", "rtol=0.0001", "atol=1e-06", "Linear"):
        assert word in text


def test_trains_inside_sequential() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(NeuralODE(Net(), algorithm=pynode.RK4(steps=3)), torch.nn.Linear(2, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = (model(Y0) - torch.tensor([[1.0], [-1.0]])).pow(2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_one_instance_in_several_threads(ode) -> None:
    inputs = [Y0 * (k + 1) for k in range(4)]
    expected = [torch.autograd.grad(ode(y).sum(), ode.f.linear.weight)[0] for y in inputs]
    found: list = [None] * 4

    def work(k: int) -> None:
        found[k] = torch.autograd.grad(ode(inputs[k]).sum(), ode.f.linear.weight)[0]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_bad_input() -> None:
    with pytest.raises(pynode.InputError, match=r"f is a int.*callable f\(t, y\).*module or function"):
        NeuralODE(3)
    with pytest.raises(pynode.InputError, match=r"unknown algorithm 'tsit6'.*did you mean Tsit5"):
        NeuralODE(Net(), algorithm="tsit6")
