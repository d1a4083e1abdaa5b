"""Every model that pynode.nn exports, as a module of one batch: those of nn_models, and those of other forms."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from nn_models import MODELS, chain, field
from torch import Tensor, nn

import pynode.nn
from pynode.controls import LinearControl, LogSignatureControl, with_time
from pynode.nn import (
    CNF,
    ODERNN,
    ConcatContext,
    Concatenated,
    ConcatSquash,
    ConcatTime,
    GradientFlow,
    GRUBayesCell,
    GRUField,
    HamiltonianODE,
    HutchinsonTrace,
    InputLayer,
    JacobianFrobenius,
    KineticEnergy,
    LagrangianODE,
    LatentODE,
    LieBracketField,
    MatrixField,
    MechanicalEnergy,
    MechanicalODE,
    NeuralCDE,
    NeuralODE,
    PolyNet,
    PortHamiltonianODE,
    Recognition,
    ResNet,
    ResNetBlock,
    RevNet,
    RungeKuttaNet,
    TimeSequential,
    UniversalODE,
)
from pynode.nn.field_costs import OnFlow

Options = dict[str, Any]


def vectors() -> Tensor:
    return torch.tensor([[0.5, -0.3], [0.1, 0.8], [-0.7, 0.2]])


def series() -> Tensor:
    return torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(1))


class Scalar(nn.Module):
    """A smooth energy of its inputs; without the constant, which has no gradient."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(size, 4), nn.Softplus(), nn.Linear(4, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + 0.5 * (x**2).sum(-1, keepdim=True)


class Flow(nn.Module):
    """Log-densities (and costs), with noise that is a function of the sample: the same however batches are cut."""

    def __init__(self, flow: CNF, context: bool = False) -> None:
        super().__init__()
        self.flow, self.context = flow, context

    def forward(self, x: Tensor) -> Tensor:
        probes = torch.sin(37 * x.detach() + 1).sign()[None] if isinstance(self.flow.trace, HutchinsonTrace) else None
        context = torch.cos(3 * x.detach()[:, :1]) if self.context else None
        if self.flow.running_cost is None:
            return self.flow.log_prob(x, context, probes=probes)
        density, cost = self.flow.log_prob_and_cost(x, context, probes=probes)
        return density + cost


class OnSeries(nn.Module):
    """A model of time series (batch, 5, 2) at fixed times."""

    def __init__(self, model: nn.Module, call: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.model, torch.tensor([0.0, 0.3, 0.5, 0.9, 1.2], dtype=x.dtype, device=x.device), x)


def regularised(k: Options) -> Flow:
    own = ConcatTime(chain(3, 4, 2))
    kinetic, jacobian = OnFlow(KineticEnergy(own)), OnFlow(JacobianFrobenius(own))

    def cost(*given: Any) -> Tensor:
        return kinetic(*given) + jacobian(*given)

    return Flow(CNF(own, 2, trace=HutchinsonTrace(), running_cost=cost, **k))


def latent_ode(k: Options) -> OnSeries:
    rnn = ODERNN(field(4, 3, 4), nn.GRUCell(4, 4), 4, reverse=True, **k)

    def bound(model: LatentODE, ts: Tensor, x: Tensor) -> Tensor:
        posterior = model.encode(ts, x)
        return model.log_likelihood(ts, x, posterior.mean + 0.1 * posterior.stddev)

    model = LatentODE(
        Recognition(rnn, nn.Linear(4, 4)), field(2, 3, 2), nn.Linear(2, 2), nn.Parameter(torch.ones(2)), **k
    )
    return OnSeries(model, bound)


class Pair(nn.Module):
    """The halves of a batch of vectors as a pair, and back."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.model((x[:, :1], x[:, 1:])), dim=1)


class Friction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = chain(3, 4, 1)

    def forward(self, t: Tensor, q: Tensor, v: Tensor) -> Tensor:
        return self.net(torch.cat([q, v, t.expand(q.shape)], dim=-1))


#: name: (make with options of a solve, make an input). Models of nn_models are in addition to these.
OWN: dict[str, tuple[Callable[..., nn.Module], Callable[[], Any]]] = {
    "CNF": (lambda **k: Flow(CNF(ConcatTime(chain(3, 4, 2)), 2, **k)), vectors),
    "conditional CNF": (
        lambda **k: Flow(CNF(ConcatContext(field(3, 4, 2)), 2, trace=HutchinsonTrace(), **k), context=True),
        vectors,
    ),
    "FFJORD": (
        lambda **k: Flow(
            CNF(TimeSequential(ConcatSquash(nn.Linear(2, 4)), nn.Tanh(), ConcatSquash(nn.Linear(4, 2))), 2, **k)
        ),
        vectors,
    ),
    "RNODE": (lambda **k: regularised(k), vectors),
    "Hamiltonian": (lambda **k: NeuralODE(HamiltonianODE(Concatenated(Scalar(2))), **k), vectors),
    "separable Hamiltonian": (
        lambda **k: NeuralODE(HamiltonianODE(kinetic=Scalar(1), potential=Scalar(1)), **k),
        vectors,
    ),
    "Lagrangian": (lambda **k: NeuralODE(LagrangianODE(Concatenated(Scalar(2)), forces=Friction()), **k), vectors),
    "gradient flow": (lambda **k: NeuralODE(GradientFlow(Scalar(2)), **k), vectors),
    "port-Hamiltonian": (
        lambda **k: NeuralODE(
            PortHamiltonianODE(
                MechanicalEnergy(nn.Linear(1, 1), Scalar(1)),
                actuation=nn.Parameter(torch.ones(1, 1)),
                dissipation=nn.Parameter(0.5 * torch.ones(1, 1)),
                control=Friction(),
            ),
            **k,
        ),
        vectors,
    ),
    "mechanical": (
        lambda **k: NeuralODE(MechanicalODE(Friction(), mass=nn.Parameter(torch.tensor([1.5]))), **k),
        vectors,
    ),
    "universal": (lambda **k: NeuralODE(UniversalODE(lambda t, y: -y, chain(2, 4, 2)), **k), vectors),
    "CDE": (
        lambda **k: OnSeries(
            NeuralCDE(MatrixField(3, 3, width=4), nn.Linear(3, 3), nn.Linear(3, 2), **k),
            lambda model, ts, x: model(LinearControl(ts, with_time(ts, x))),
        ),
        series,
    ),
    "ODE-RNN": (
        lambda **k: OnSeries(
            ODERNN(field(4, 3, 4), nn.GRUCell(5, 4), 4, gap=True, **k), lambda model, ts, x: model(ts, x).after
        ),
        series,
    ),
    "latent ODE": (lambda **k: latent_ode(k), series),
    "log-ODE CDE": (
        lambda **k: OnSeries(
            NeuralCDE(LieBracketField(MatrixField(3, 2, width=4)), nn.Linear(2, 3), nn.Linear(3, 2), **k),
            lambda model, ts, x: model(LogSignatureControl(ts, x, 2), z0=model.initial(x[:, 0])),
        ),
        series,
    ),
    "GRU-ODE-Bayes": (
        lambda **k: OnSeries(
            ODERNN(GRUField(4), GRUBayesCell(2, 4, nn.Linear(4, 4)), 4, **k), lambda model, ts, x: model(ts, x).after
        ),
        series,
    ),
    # Discrete counterparts: no solve, hence no options.
    "ResNet": (lambda **k: ResNet(field(2, 3, 2), 3), vectors),
    "ResNet block": (lambda **k: ResNetBlock(field(2, 3, 2)), vectors),
    "PolyNet": (lambda **k: PolyNet([field(2, 3, 2), field(2, 3, 2)], order=2), vectors),
    "RevNet": (lambda **k: Pair(RevNet(field(1, 3, 1), field(1, 3, 1), 3)), vectors),
    "Runge-Kutta net": (lambda **k: RungeKuttaNet(field(2, 3, 2), 2, learned=True), vectors),
    "input layer of a sum": (lambda **k: NeuralODE(field(3, 3, 3), input=InputLayer(nn.Linear(2, 3)), **k), vectors),
}
EVERY = {**MODELS, **OWN}
DISCRETE = frozenset({"ResNet", "ResNet block", "PolyNet", "RevNet", "Runge-Kutta net"})

#: Exported, and no module that stands in a model: what they are, or which model above uses them.
OTHERS = {
    "Basis": "abstract",
    "TimeLayer": "abstract",
    "ELBO": "a result of LatentODE.elbo",
    "Filtered": "a result of ODERNN",
    "ExactTrace": "CNF",
    "FieldCost": "abstract",
    "HutchinsonTrace": "conditional CNF",
    "KineticEnergy": "RNODE",
    "JacobianFrobenius": "RNODE",
}


def made(name: str, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[nn.Module, Any]:
    """A model, the same every time, and its input, which requires a gradient."""
    make, x = EVERY[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make(**options).to(dtype)
    given = x()
    if isinstance(given, dict):
        return model, {key: leaf.to(dtype).requires_grad_() for key, leaf in given.items()}
    return model, given.to(dtype).requires_grad_()


def loss_of(out: Tensor) -> Tensor:
    """A sum over the samples of the batch, each with its own terms: the same however batches are cut."""
    flat = out.reshape(out.shape[0], -1)
    weights = torch.cos(torch.arange(1.0, flat.shape[1] + 1, dtype=out.dtype, device=out.device))
    return (weights * flat + 0.5 * flat**2).sum()


def missing_classes() -> set[str]:
    """Exported classes that are in no model of the table."""
    exported = {name for name in pynode.nn.__all__ if inspect.isclass(getattr(pynode.nn, name))}
    used = {type(part).__name__ for name in EVERY for part in made(name)[0].modules()}
    return exported - used - OTHERS.keys()
