"""Vector fields under one signature."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pynode.compat.torchdyn.ambient import Ambient, evaluating
from pynode.errors import InputError, explain
from pynode.nn import HigherOrder
from pynode.solution import Stats

#: Solves whose gradient may still be to come.
_KEPT = 16
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def standardize_vf_call_signature(vector_field: Any, order: int = 1, defunc_wrap: bool = False) -> Any:
    """``vector_field`` with the signature ``(t, x, args={})``.

    Taken are ``f(x)``, ``f(t, x)`` and ``f(t, x, args)``: which one is read off the parameters' names once (a parameter
    ``t``, or two that have no default, mean that time comes first; one called ``args``, or ``**kwargs``, that the
    arguments are wanted).

    Raises
    ------
    InputError
        For anything else.
    """
    if isinstance(vector_field, DEFunc):
        return vector_field
    has_time, has_args = _form(vector_field)
    if not (isinstance(vector_field, torch.nn.Module) and has_time and has_args):
        vector_field = DEFuncBase(vector_field, has_time, has_args)
    return DEFunc(vector_field, order) if defunc_wrap else vector_field


def _form(vector_field: Any) -> tuple[bool, bool]:
    """Whether a field wants the time, and the arguments."""
    if not callable(vector_field):
        raise InputError(_message(f"the vector field is a {type(vector_field).__name__}"))
    function = vector_field.forward if isinstance(vector_field, torch.nn.Module) else vector_field
    parameters = inspect.signature(function).parameters
    free = [p for p in parameters.values() if p.kind in _POSITIONAL and p.default is p.empty and p.name != "args"]
    has_args = "args" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if "args" in parameters and parameters["args"].kind is inspect.Parameter.VAR_POSITIONAL:
        has_args = False
        if not free:
            return True, False
    if len(free) > 2 or not any(p.kind in _POSITIONAL for p in parameters.values()):
        raise InputError(_message(f"the vector field takes ({', '.join(parameters)})"))
    return "t" in parameters or len(free) == 2, has_args


def _message(came: str) -> str:
    return explain(came, "f(x), f(t, x) or f(t, x, args)", "wrap it in a function with one of these signatures")


class DEFuncBase(torch.nn.Module):
    """A callable as ``(t, x, args={})``.

    Parameters
    ----------
    vector_field : callable
    has_time_arg : bool
        Whether it is called with ``t`` first.
    has_args : bool
        Whether it is called with ``args=``; torchdyn does so whenever it has a time.
    """

    def __init__(self, vector_field: Callable[..., Any], has_time_arg: bool = True, has_args: bool = True) -> None:
        super().__init__()
        self.vf = vector_field
        self.has_time_arg = has_time_arg
        self.has_args = has_args

    def forward(self, t: Tensor, x: Any, args: Any = None) -> Any:
        """The field's value."""
        inputs = (t, x) if self.has_time_arg else (x,)
        return self.vf(*inputs, args={} if args is None else args) if self.has_args else self.vf(*inputs)


class DEFunc(torch.nn.Module):
    """The field of a Neural ODE: of higher order, with the time for ``DepthCat``, with a propagated integral loss.

    Parameters
    ----------
    vector_field : callable
        ``f(x)``, ``f(t, x)`` or ``f(t, x, args)``.
    order : int
        ``x`` holds the blocks ``q, q', ...`` along dimension 1 and the field gives the highest derivative alone.

    Attributes
    ----------
    integral_loss : callable or None
        ``l(t, x)`` or ``l(x)``. With ``sensitivity == "autograd"`` the state's first column is its integral.
    nfe : int
        Evaluations by the solves so far, those of their gradients included; assign 0 to count anew.
    """

    def __init__(self, vector_field: Callable[..., Any], order: int = 1) -> None:
        super().__init__()
        self.vf = standardize_vf_call_signature(vector_field)
        self.order = order
        self.higher = HigherOrder(self._field, order, dim=1) if order > 1 else None
        self.integral_loss: Callable[..., Any] | None = None
        self.sensitivity: str | None = None
        self._stats: deque[Stats] = deque()
        self._counted = 0

    @property
    def nfe(self) -> int:
        return self._counted + sum(map(_evaluations, self._stats))

    @nfe.setter
    def nfe(self, value: float) -> None:
        self._stats.clear()
        self._counted = int(value)

    def count(self, stats: Stats) -> None:
        """Count the evaluations of a solve, and those of its gradient once that has run."""
        self._stats.append(stats)
        while len(self._stats) > _KEPT:
            self._counted += _evaluations(self._stats.popleft())

    def forward(
        self, t: Any, x: Any, args: Any = None, control: Tensor | None = None, noise: tuple[Tensor, ...] = ()
    ) -> Any:
        """Derivative of ``x`` at ``t``; ``control`` is what ``DataControl`` appends, ``noise`` what stochastic traces
        use, in the order of their modules."""
        if not isinstance(t, Tensor):
            leaf = x if isinstance(x, Tensor) else next(iter(x.values()))
            t = torch.as_tensor(t, dtype=leaf.dtype, device=leaf.device)
        ambient = Ambient(t, control, {id(m): n for m, n in zip(noisy(self.vf), noise, strict=False)})
        with evaluating(ambient), _written(self.vf, ambient):
            if self.propagates:
                assert self.integral_loss is not None
                rest = x[:, 1:]
                loss = self.integral_loss(t, rest)
                loss = loss[:, None] if loss.ndim == 1 else loss
                return torch.cat([loss, self._derivative(t, rest, args)], dim=1)
            return self._derivative(t, x, args)

    @property
    def propagates(self) -> bool:
        """Whether the state's first column is the integral of a loss."""
        return self.integral_loss is not None and self.sensitivity == "autograd"

    def _derivative(self, t: Tensor, x: Any, args: Any) -> Any:
        return self._field(t, x, args) if self.higher is None else self.higher(t, x, args)

    def _field(self, t: Tensor, x: Any, args: Any) -> Any:
        return self.vf(t, x, args=args)


def noisy(vf: torch.nn.Module) -> list[torch.nn.Module]:
    """The modules of ``vf`` that estimate a trace by noise of a distribution."""
    return [module for module in vf.modules() if getattr(module, "noise_dist", None) is not None]


def _evaluations(stats: Stats) -> int:
    return stats.forward.nfe + stats.backward.nfe


@contextmanager
def _written(vf: torch.nn.Module, ambient: Ambient) -> Iterator[None]:
    """The user's own modules with an attribute ``t``, ``_control`` or ``noise`` find these there, as in torchdyn."""
    before: list[tuple[torch.nn.Module, str, Any]] = []

    def write(module: torch.nn.Module, name: str, value: Any) -> None:
        before.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    for module in vf.modules():
        held = vars(module)
        if "t" in held and (held["t"] is None or isinstance(held["t"], Tensor | float | int)):
            write(module, "t", ambient.t)
        if "_control" in held and ambient.control is not None:
            write(module, "_control", ambient.control)
        if "noise" in held and id(module) in ambient.noise:
            write(module, "noise", ambient.noise[id(module)])
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
