"""The gradient of a trained ODE-net against SciPy's solver, which shares no code with pynode's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from pynode.algorithms import Tsit5
from pynode.backends import backend_from_name
from pynode.demo.models import Classifier, ODEBody
from pynode.errors import InputError, PynodeError, explain
from pynode.nn import NeuralODE
from pynode.sensealg import GaussAdjoint

#: Relative and absolute tolerance of pynode's solve in the check, and the largest relative error that passes.
TOLERANCE, BOUND = 1e-8, 1e-5
#: The same of SciPy's solves.
_SCIPY = {"method": "DOP853", "rtol": 1e-10, "atol": 1e-12}
#: Random directions of the parameters, and the change of each parameter, in its direction's standard deviations.
_DIRECTIONS, _DIFFERENCE = 3, 1e-5

Vector = np.ndarray[Any, np.dtype[np.float64]]
Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class GradientCheck:
    """Relative errors, in the Euclidean norm, of pynode's gradient of the loss in float64.

    Attributes
    ----------
    samples : int
        Test images the loss was taken over.
    algorithm, sensealg : str
        What pynode used, at rtol = atol = ``TOLERANCE``.
    loss : float
        The loss itself, against SciPy's forward solve.
    state, parameters : float
        The gradient with respect to the ODE block's input, and to all its parameters, against the adjoint equation
        integrated by SciPy.
    directions : float
        Derivatives along random directions of the parameters, against central differences of SciPy's forward
        solves: a reference without any automatic differentiation.
    as_trained : float
        For information: the error of the parameters' gradient when pynode solves with the algorithm and the
        tolerances of the training.
    julia : float or None
        The parameters' gradient by the Julia backend with ``GaussAdjoint``, against SciPy's; None where Julia is not
        installed.
    """

    samples: int
    algorithm: str
    sensealg: str
    loss: float
    state: float
    parameters: float
    directions: float
    as_trained: float
    julia: float | None = None

    @property
    def passed(self) -> bool:
        """Whether every error but that of the training is within ``BOUND`` (a NaN is not)."""
        errors = [self.loss, self.state, self.parameters, self.directions]
        return all(error <= BOUND for error in (errors if self.julia is None else [*errors, self.julia]))

    def as_json(self) -> dict[str, Any]:
        """Everything above in plain types, with tolerance, bound and verdict."""
        return {**asdict(self), "tolerance": TOLERANCE, "bound": BOUND, "passed": self.passed}


@dataclass(frozen=True)
class _Gradient:
    """A loss with its gradient: ``state`` shaped like the block's input, ``parameters`` flat of length P."""

    loss: float
    state: Tensor
    parameters: Tensor


def check_gradient(model: Classifier, images: Tensor, labels: Tensor, *, seed: int) -> GradientCheck:
    """Compare pynode's gradient with SciPy's for the loss of a few images.

    Parameters
    ----------
    model : Classifier
        With an ODE body. Not changed: the check works on a float64 copy on the CPU.
    images, labels : Tensor
        Shapes (N, 1, height, width) and (N,).
    seed : int
        Of the random directions.
    """
    model = copy.deepcopy(model).double().cpu().eval()
    if not isinstance(model.body, ODEBody):
        raise InputError(
            explain(f"the model's body is a {type(model.body).__name__}", "an ODEBody", "pass the trained ODE-net")
        )
    ode = model.body.ode
    with torch.no_grad():
        start = model.stem(images.double().cpu())

    def loss(end: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model.head(end), labels.cpu())

    as_trained = _gradient(ode, start, loss)
    # A fixed step cannot follow a tolerance, so the check needs an adaptive algorithm.
    ode.algorithm = ode.algorithm if ode.algorithm.adaptive else Tsit5()
    ode.rtol = ode.atol = TOLERANCE
    ours = _gradient(ode, start, loss)
    reference = _SciPyReference(ode.f, start, loss)
    theirs = reference.gradient()

    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(_DIRECTIONS, len(ours.parameters), generator=generator, dtype=torch.float64)
    differences = torch.tensor([reference.difference(direction) for direction in directions], dtype=torch.float64)
    assert ode.sensealg is not None
    algorithm, sensealg = ode.algorithm.name, ode.sensealg.name
    julia = _by_julia(ode, start, loss)
    return GradientCheck(
        samples=len(images),
        algorithm=algorithm,
        sensealg=sensealg,
        loss=abs(ours.loss - theirs.loss) / abs(theirs.loss),
        state=_distance(ours.state, theirs.state),
        parameters=_distance(ours.parameters, theirs.parameters),
        directions=_distance(directions @ ours.parameters, differences),
        as_trained=_distance(as_trained.parameters, theirs.parameters),
        julia=None if julia is None else _distance(julia.parameters, theirs.parameters),
    )


def _by_julia(ode: NeuralODE, start: Tensor, loss: Loss) -> _Gradient | None:
    """The gradient by SciML, where Julia is installed; leaves ``ode`` set to it."""
    backend = backend_from_name("julia")
    if backend.absent() is not None:
        return None
    ode.sensealg = GaussAdjoint()
    ode.algorithm = Tsit5() if backend.supports(ode.algorithm, ode.sensealg) else ode.algorithm
    ode.options = {**ode.options, "backend": "julia"}
    return _gradient(ode, start, loss)


def _gradient(ode: NeuralODE, start: Tensor, loss: Loss) -> _Gradient:
    """By pynode, with what ``ode`` is set to."""
    y0 = start.clone().requires_grad_()
    value = loss(ode(y0))
    state, *parameters = torch.autograd.grad(value, [y0, *ode.f.parameters()])
    return _Gradient(value.item(), state, parameters_to_vector(parameters))


class _SciPyReference:
    """Loss and gradient with every integration done by ``scipy.integrate.solve_ivp`` on flat vectors."""

    def __init__(self, field: nn.Module, start: Tensor, loss: Loss) -> None:
        self.field = copy.deepcopy(field)
        self.parameters = list(self.field.parameters())
        self.start = start
        self.loss = loss

    def end(self) -> Tensor:
        """The state at t = 1, in the shape of ``start``."""

        def derivative(t: float, y: Vector) -> Vector:
            with torch.no_grad():
                return _vector(self.field(_time(t), self._state(y)))

        return self._state(_integrate(derivative, (0.0, 1.0), _vector(self.start)))

    def gradient(self) -> _Gradient:
        """State, adjoint and parameter gradient, integrated together from t = 1 to t = 0."""
        end = self.end().requires_grad_()
        loss = self.loss(end)
        (adjoint,) = torch.autograd.grad(loss, end)
        size = end.numel()

        def derivative(t: float, z: Vector) -> Vector:
            y = self._state(z[:size]).requires_grad_()
            slope = self.field(_time(t), y)
            pulled = torch.autograd.grad(slope, [y, *self.parameters], self._state(z[size : 2 * size]))
            return np.concatenate([_vector(slope), *(-_vector(part) for part in pulled)])

        count = sum(p.numel() for p in self.parameters)
        z = _integrate(derivative, (1.0, 0.0), np.concatenate([_vector(end), _vector(adjoint), np.zeros(count)]))
        return _Gradient(loss.item(), self._state(z[size : 2 * size]), torch.from_numpy(z[2 * size :]))

    def difference(self, direction: Tensor) -> float:
        """Central difference of the loss along ``direction`` (P,) of the parameters."""
        center = parameters_to_vector(self.parameters).detach().clone()
        values = []
        with torch.no_grad():
            for sign in (1.0, -1.0):
                vector_to_parameters(center + sign * _DIFFERENCE * direction, self.parameters)
                values.append(self.loss(self.end()).item())
            vector_to_parameters(center, self.parameters)
        return (values[0] - values[1]) / (2 * _DIFFERENCE)

    def _state(self, y: Vector) -> Tensor:
        # A copy: SciPy reuses the array it hands out.
        return torch.from_numpy(y.copy()).view_as(self.start)


def _integrate(derivative: Callable[[float, Vector], Vector], span: tuple[float, float], y0: Vector) -> Vector:
    from scipy.integrate import solve_ivp

    result = solve_ivp(derivative, span, y0, **_SCIPY)
    if not result.success:
        raise PynodeError(
            explain(
                f"SciPy's reference solve stopped at t = {result.t[-1]:.6g} ({result.message})",
                "it to reach the end",
                "train with another --seed; the learned field may be too stiff for an explicit method",
            )
        )
    end: Vector = result.y[:, -1]
    return end


def _time(t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


def _vector(tensor: Tensor) -> Vector:
    return np.asarray(tensor.detach().flatten().numpy())


def _distance(value: Tensor, reference: Tensor) -> float:
    norm = torch.linalg.vector_norm
    return float(norm(value - reference) / norm(reference))
