"""Torch models in Lux and DiffEqFlux: exported with their weights, trained there, and taken back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pynode.errors import InputError, SolveError, UnsupportedError, explain
from pynode.julia import lux_modules  # noqa: F401  (makes torch.nn's classes known)
from pynode.julia.lux_convert import layer_of
from pynode.julia.lux_layers import LuxLayer, parameter_paths
from pynode.julia.runtime import julia
from pynode.problem import check_times
from pynode.solution import ReturnCode


class LuxModel:
    """A torch model as a Lux model: ``chain(y, parameters, states)`` in Julia.

    A row-major torch tensor of shape (a, b, c) is a Julia array of size (c, b, a): batches are the last dimension in
    Julia, channels the one before.

    Attributes
    ----------
    chain : juliacall value
        The Lux layer: ``Chain``, or ``PyNodeLuxExt.TimedChain``, called with ``(t, y)``, if ``takes_time``.
    parameters : juliacall value
        A ``ComponentArray`` of the model's dtype. Assign the trained ones to it, or hand them to :meth:`load_into`.
    states : juliacall value
        The states of Lux. Parameters that do not require a gradient are here.
    source : str
        The text of ``chain``.
    takes_time : bool
    """

    def __init__(self, module: nn.Module, layer: LuxLayer) -> None:
        self.source = layer.source()
        self.takes_time = layer.timed
        self.dtype = _dtype(module)
        self._paths = _torch_names(parameter_paths(layer), module)
        self._julia = _julia()
        self.chain, self.parameters, self.states = self._julia.lux_model(self.source, _real(self.dtype))
        own = dict(module.named_parameters())
        for name, path, reverse in self._paths:
            array = own[name].detach().cpu().numpy()
            self._julia.lux_put(self.parameters, self.states, path, array.T if reverse else array)

    def load_into(self, model: nn.Module, parameters: Any = None) -> None:
        """Copy the weights to a torch model of the structure of the exported one.

        Parameters
        ----------
        model : torch.nn.Module
            The exported model, or another of its kind.
        parameters : juliacall value, optional
            The weights, as training in Julia returned them; those of this object by default.

        Raises
        ------
        InputError
            If the model lacks a parameter, or it has another shape.
        """
        parameters = self.parameters if parameters is None else parameters
        own = dict(model.named_parameters(remove_duplicate=False))
        values = {}
        for name, path, reverse in self._paths:
            array = np.asarray(self._julia.lux_get(parameters, self.states, path))
            values[name] = torch.from_numpy(np.ascontiguousarray(array.T if reverse else array))
            if name not in own or own[name].shape != values[name].shape:
                found = "no parameter" if name not in own else f"one of shape {tuple(own[name].shape)}"
                raise InputError(
                    explain(
                        f"the model has {found} {name!r}",
                        f"one of shape {tuple(values[name].shape)}",
                        "pass the model that was exported, or one made like it",
                    )
                )
        with torch.no_grad():
            for name, value in values.items():
                own[name].copy_(value)

    def __call__(self, *inputs: Any) -> Tensor:
        """The model's value in Julia at ``y``, or at ``(t, y)`` if it takes the time: no gradient, on the CPU."""
        if len(inputs) != 1 + self.takes_time:
            wanted = "(t, y)" if self.takes_time else "(y)"
            raise InputError(explain(f"the model got {len(inputs)} arguments", wanted, "call it like the field"))
        time = (float(inputs[0]),) if self.takes_time else ()
        return _tensor(self._julia.lux_call(self.chain, self.parameters, self.states, *time, self._array(inputs[-1])))

    def _array(self, y: Tensor) -> Any:
        if y.dtype != self.dtype:
            raise InputError(explain(f"the state is {y.dtype}", f"the model's {self.dtype}", "convert it with .to()"))
        return _array(y)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.dtype})\n{self.source}"


class LuxNeuralODE(LuxModel):
    """A torch field as a neural differential equation of DiffEqFlux, made by :func:`neural_ode`.

    In Julia, ``layer(y0, parameters, states)`` returns the solution and the states; Zygote differentiates through it.

    Attributes
    ----------
    layer : juliacall value
        ``DiffEqFlux.NeuralODE`` over ``chain``. Where ``takes_time``, ``PyNodeDiffEqFluxExt.TimedNeuralODE``: the same
        for a field of time and state, which DiffEqFlux does not have.
    t : list of float
        The save times.
    """

    layer: Any
    t: list[float]

    def __call__(self, *inputs: Any) -> Tensor:
        """The states (T, *shape) at ``t`` for an initial state: no gradient, on the CPU.

        Raises
        ------
        SolveError
            If the solve does not reach the final time.
        """
        if len(inputs) != 1:
            raise InputError(explain(f"got {len(inputs)} arguments", "the initial state", "pass y0"))
        y0 = self._array(inputs[0])
        states, ended, t = self._julia.lux_trajectory(self.layer, self.parameters, self.states, y0)
        if ended != "Success":
            raise SolveError(
                explain(f"DiffEqFlux ended with {ended} at t = {t:.9g}", "the final time", "loosen the tolerances"),
                ReturnCode.__members__.get(ended, ReturnCode.Unstable),
                t,
            )
        return _tensor(states)


def to_lux(model: nn.Module) -> LuxModel:
    """Export a torch model to Lux, weights included.

    Parameters
    ----------
    model : torch.nn.Module
        ``nn.Sequential``, nested as you like, of ``Linear``, ``Conv1d`` to ``Conv3d`` (with zero padding and a batch
        dimension), ``GroupNorm`` and elementwise activations; modules whose ``forward(y)`` or ``forward(t, y)`` chains
        such modules, activation functions, integer powers, multiples, and the concatenation of the time as one more
        channel (read by ``torch.fx``); and classes made known with :func:`pynode.julia.register_lux`. float32 or
        float64.

    Returns
    -------
    LuxModel

    Raises
    ------
    UnsupportedError
        Naming the class and the path of the first module that has no counterpart, or the parameter that is used twice
        (Lux would untie it) or computed from others. Or that Julia or its packages are missing, with the command that
        installs them.
    """
    return LuxModel(model, layer_of(model))


def neural_ode(
    model: nn.Module,
    t: Tensor | Sequence[float],
    *,
    algorithm: Any = "Tsit5",
    rtol: float = 1e-5,
    atol: float = 1e-7,
    sensealg: Any = "GaussAdjoint",
    **options: Any,
) -> LuxNeuralODE:
    """The flow of a torch field as a ``DiffEqFlux.NeuralODE``, to be trained in Julia.

    Parameters
    ----------
    model : torch.nn.Module
        The field, as for :func:`to_lux`: ``forward(t, y)`` as :func:`pynode.solve` takes it, or ``forward(y)``.
    t : 1-D tensor or sequence of float
        Strictly monotone save times; ``t[0]`` is the initial time. Rounded to the model's dtype.
    algorithm : str or juliacall value
        An expression such as ``"Tsit5"`` or ``"AutoTsit5(Rosenbrock23())"``.
    rtol, atol : float
    sensealg : str or juliacall value
        How Zygote differentiates the solve: ``"GaussAdjoint"``, ``"InterpolatingAdjoint"``, ``"QuadratureAdjoint"``,
        ``"BacksolveAdjoint"``, with Zygote for the products of the model, or an expression with the arguments you like.
    **options
        Keyword arguments of SciML's ``solve`` (``dt``, ``maxiters``, ``adaptive``).

    Returns
    -------
    LuxNeuralODE

    Raises
    ------
    UnsupportedError
        As :func:`to_lux`.
    InputError
        For times that are not strictly monotone.

    Notes
    -----
    Chen et al. 2018; Rackauckas et al. 2020 (DiffEqFlux).
    """
    layer = layer_of(model)
    times = check_times("t", t)[1]
    if isinstance(sensealg, str) and "(" not in sensealg:
        # The choice SciMLSensitivity would make itself tries several other packages first.
        sensealg = f"{sensealg}(autojacvec = ZygoteVJP())"
    exported = LuxNeuralODE(model, layer)
    flux = _julia("DiffEqFlux")
    exported.t = times
    exported.layer = flux.lux_neural_ode(
        exported.chain, _real(exported.dtype), np.asarray(times), algorithm, sensealg, rtol=rtol, atol=atol, **options
    )
    return exported


def _dtype(module: nn.Module) -> torch.dtype:
    dtypes = {parameter.dtype for parameter in module.parameters()} or {torch.get_default_dtype()}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
        raise UnsupportedError(
            explain(f"the parameters are {', '.join(map(str, dtypes))}", "float32 or float64", "call .float() on it")
        )
    return dtypes.pop()


def _torch_names(paths: list[tuple[str, Tensor, bool]], module: nn.Module) -> list[tuple[str, str, bool]]:
    """For every parameter in Lux, its name in torch, its path, and whether its index order is reversed."""
    names = {id(tensor): name for name, tensor in module.named_parameters()}
    found: dict[str, tuple[str, str, bool]] = {}
    for path, tensor, reverse in paths:
        name = names.get(id(tensor))
        if name is None or name in found:
            what = "a weight is computed from parameters" if name is None else f"the parameter {name!r} is used twice"
            raise UnsupportedError(
                explain(
                    f"{what} ({path} in Lux)",
                    "every weight to be a parameter, used once: in Lux they would drift apart in training",
                    "copy the module for its second use, or remove the parametrization",
                )
            )
        found[name] = (name, path, reverse)
    return list(found.values())


def _array(tensor: Tensor) -> Any:
    """A Julia array of the reversed shape: for a row-major tensor, of the same memory order."""
    return _julia().lux_array(tensor.detach().cpu().numpy().T)


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.asarray(array).T))


def _real(dtype: torch.dtype) -> Any:
    return _julia().seval("Float64" if dtype == torch.float64 else "Float32")


def _julia(*packages: str) -> Any:
    """The Julia module PyNode, with what turns torch models into those of Lux and of ``packages`` loaded."""
    main = julia().main
    wanted = ", ".join(("ComponentArrays", "Lux", *packages))
    try:
        main.seval(f"import {wanted}")
    except Exception as error:
        raise UnsupportedError(
            explain(
                f"Julia could not load {wanted}: {str(error).strip().splitlines()[0]}",
                "the packages of the extra 'flux'",
                "run `pynode julia setup --with flux`",
            )
        ) from error
    return main.PyNode
