"""What torchdiffeq's keyword arguments mean here: methods, options, tolerances, norms, callbacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pynode.algorithms import (
    BS3,
    DP5,
    DP8,
    RK38,
    AdaptiveHeun,
    Algorithm,
    Euler,
    ExplicitAdams,
    Fehlberg2,
    FixedImplicit,
    FixedStep,
    Heun,
    Heun3,
    ImplicitAdams,
    Midpoint,
    Tsit5,
)
from pynode.algorithms.fixed_implicit import SCHEMES
from pynode.controllers import IController
from pynode.errors import InputError, SolveError, UnsupportedError, explain
from pynode.layout import Layout
from pynode.strict import warn

#: Kutta's 3/8 rule is torchdiffeq's ``rk4``.
FIXED: dict[str, Callable[..., FixedStep]] = {
    "euler": Euler,
    "midpoint": Midpoint,
    "heun2": Heun,
    "heun3": Heun3,
    "rk4": RK38,
    "explicit_adams": ExplicitAdams,
    "implicit_adams": ImplicitAdams,
    "fixed_adams": ImplicitAdams,
    **{scheme: partial(FixedImplicit, scheme=scheme) for scheme in SCHEMES},
}

ADAPTIVE: dict[str, type[Algorithm]] = {
    "dopri8": DP8,
    "dopri5": DP5,
    "bosh3": BS3,
    "tsit5": Tsit5,
    "fehlberg2": Fehlberg2,
    "adaptive_heun": AdaptiveHeun,
}

_FIXED_OPTIONS = {"step_size", "grid_constructor", "interp", "perturb", "norm"}
#: What some have besides.
_OWN_OPTIONS: dict[str, set[str]] = {
    "explicit_adams": {"max_order"},
    "implicit_adams": {"max_order", "max_iters"},
    "fixed_adams": {"max_order", "max_iters"},
    **{scheme: {"max_iters"} for scheme in SCHEMES},
}
_ADAPTIVE_OPTIONS = {
    *("norm", "first_step", "step_t", "jump_t", "safety", "ifactor", "dfactor"),
    *("min_step", "max_step", "max_num_steps", "dtype"),
}
UNLIMITED = 2**31 - 1


class AssertedInputError(InputError, AssertionError):
    """An InputError that code written for torchdiffeq catches as the AssertionError it expects."""


class AssertedSolveError(SolveError, AssertionError):
    """A SolveError that code written for torchdiffeq catches as the AssertionError it expects."""


#: pynode's names in messages, and what they are called in torchdiffeq's options.
_RENAMED = {
    "raise max_steps": "raise options['max_num_steps']",
    "d_discontinuities=": "options['jump_t']",
    "lower dt0 or the fixed step": "lower options['first_step'] or options['step_size']",
    "dtmin": "options['min_step']",
    "dtmax": "options['max_step']",
    "dt0": "options['first_step']",
}


def in_torchdiffeq_terms(error: InputError | SolveError) -> Exception:
    """The same error as an AssertionError too, with options called as the caller called them."""
    message = str(error)
    for ours, theirs in _RENAMED.items():
        message = message.replace(ours, theirs)
    if isinstance(error, SolveError):
        return AssertedSolveError(message, error.retcode, error.t, error.solution)
    return AssertedInputError(message)


@contextmanager
def assertions() -> Iterator[None]:
    """Turn pynode's errors into those that are AssertionErrors too."""
    try:
        yield
    except (InputError, SolveError) as error:
        raise in_torchdiffeq_terms(error) from None


@dataclass(frozen=True)
class Settings:
    """A method and its options, in pynode's terms."""

    method: str
    algorithm: Algorithm
    norm: Any
    controller: IController
    dt0: float | None
    dtmin: float
    dtmax: float
    tstops: tuple[float, ...]
    jumps: tuple[float, ...]
    max_num_steps: int


def settings(
    method: str | None,
    options: dict[str, Any] | None,
    func: Callable[..., Any],
    y0: Any,
    t: Tensor,
    backward: bool = False,
) -> Settings:
    """``method`` and ``options`` of torchdiffeq, of a forward solve or of the ``backward`` one of its adjoint.

    Raises
    ------
    InputError
        For an unknown method, or options that exclude each other.
    UnsupportedError
        For a method of torchdiffeq that pynode does not have yet.
    """
    method = "dopri5" if method is None else method
    options = {} if options is None else dict(options)
    known = _ADAPTIVE_OPTIONS
    if method in FIXED:
        known = _FIXED_OPTIONS | _OWN_OPTIONS.get(method, set())
    if method in FIXED:
        algorithm: Algorithm = _fixed(method, options, func, y0, t, backward)
    elif method in ADAPTIVE:
        algorithm = ADAPTIVE[method]()
    elif method == "scipy_solver":
        raise UnsupportedError(
            explain(
                "method 'scipy_solver' with dense output or an event function",
                "states at given times from SciPy's solvers",
                "use 'dopri5' or 'dopri8', SciPy's RK45 and DOP853",
            )
        )
    else:
        names = ", ".join(repr(name) for name in (*ADAPTIVE, *FIXED))
        raise InputError(explain(f"Invalid method {method!r}", f"one of {names}", "use method='dopri5'"))
    unexpected = {key: value for key, value in options.items() if key not in known}
    if unexpected:
        warn(f"{algorithm.name}: Unexpected arguments {unexpected}")
    tstops, jumps = _times(options.get("step_t")), _times(options.get("jump_t"))
    if len({*tstops, *jumps}) < len(tstops) + len(jumps):
        raise InputError(
            explain(
                f"options['step_t'] = {tstops} and options['jump_t'] = {jumps} repeat a time",
                "different times in both together",
                "name a time once, in jump_t where the field jumps",
            )
        )
    adaptive = options if method in ADAPTIVE else {}
    first_step = adaptive.get("first_step")
    return Settings(
        method=method,
        algorithm=algorithm,
        norm=options.get("norm"),
        controller=IController(
            safety=float(adaptive.get("safety", 0.9)),
            factormin=float(adaptive.get("dfactor", 0.2)),
            factormax=float(adaptive.get("ifactor", 10.0)),
        ),
        dt0=None if first_step is None else float(first_step),
        dtmin=float(adaptive.get("min_step", 0.0)),
        dtmax=float(adaptive.get("max_step", math.inf)),
        tstops=tstops,
        jumps=jumps,
        max_num_steps=int(adaptive.get("max_num_steps", UNLIMITED)),
    )


def _fixed(
    method: str, options: dict[str, Any], func: Callable[..., Any], y0: Any, t: Tensor, backward: bool
) -> FixedStep:
    interp = options.get("interp", "linear")
    if interp not in ("linear", "cubic"):
        raise InputError(explain(f"options['interp'] = {interp!r}", "'linear' or 'cubic'", "use one of them"))
    step_size, constructor = options.get("step_size"), options.get("grid_constructor")
    if step_size is not None and constructor is not None:
        raise InputError(
            explain("step_size and grid_constructor are mutually exclusive", "one of them in options", "drop the other")
        )

    def mesh(times: Tensor) -> Any:
        # The user's constructor sees times as the user gave them. Without one, a backward solve takes one step from
        # each time to the one before, whatever steps the forward solve took.
        return times if constructor is None else constructor(func, y0, times.to(t.dtype))

    own = constructor is not None or (backward and step_size is None)
    of_method = {key: int(options[key]) for key in _OWN_OPTIONS.get(method, ()) if key in options}
    if of_method.get("max_order", 4) < 4:
        warn("max_order is below 4, so the solver reduces to `rk4`.")
    return FIXED[method](
        dt=None if step_size is None else float(step_size),
        mesh=mesh if own else None,
        interpolation="linear" if interp == "linear" else "hermite",
        perturb=bool(options.get("perturb", False)),
        **of_method,
    )


def _times(values: Any) -> tuple[float, ...]:
    if values is None:
        return ()
    return tuple(torch.as_tensor(values, dtype=torch.float64).detach().reshape(-1).tolist())


def tolerance(name: str, value: Any, y0: Any, layout: Layout) -> float | Tensor:
    """A tolerance as a float, or as one number per element of the flattened state.

    ``value``: a number; for a tensor state a tensor that broadcasts to it; for a tuple, one of these per component.
    """
    _check_no_gradient(name, value)
    if isinstance(y0, Tensor):
        return _per_element(name, [value], [y0], layout) if _is_array(value) else float(value)
    if not isinstance(value, Iterable) or (isinstance(value, Tensor) and value.ndim == 0):
        return float(value)
    values = list(value)
    if len(values) != len(y0):
        raise AssertedInputError(
            explain(
                f"{name} has {len(values)} entries", f"one per component of y0, {len(y0)}", f"give one number as {name}"
            )
        )
    return _per_element(name, values, list(y0), layout)


def adjoint_tolerance(
    name: str, value: Any, y0: Any, layout: Layout, params: Sequence[Tensor]
) -> float | Tensor | None:
    """As :func:`tolerance`; a tuple may also have one entry for each of time, state, adjoint and parameters."""
    if isinstance(value, tuple | list) and len(value) == 3 + len(params):
        state = torch.empty(layout.size, device="meta")
        return _per_element(name, list(value[1:]), [state, state, *params], layout)
    return None if value is None else tolerance(name, value, y0, layout)


def _is_array(value: Any) -> bool:
    return isinstance(value, tuple | list) or (isinstance(value, Tensor) and value.ndim > 0)


def _per_element(name: str, values: list[Any], leaves: list[Tensor], layout: Layout) -> Tensor:
    parts = []
    for value, leaf in zip(values, leaves, strict=True):
        _check_no_gradient(name, value)
        part = torch.as_tensor(value, dtype=layout.dtype, device=layout.device)
        try:
            part = part.expand(leaf.shape).reshape(-1)
        except RuntimeError:
            raise AssertedInputError(
                explain(
                    f"{name} has shape {tuple(part.shape)}",
                    f"one that broadcasts to the state's, {tuple(leaf.shape)}",
                    f"give one number as {name}",
                )
            ) from None
        # Real and imaginary parts lie side by side.
        parts.append(part.repeat_interleave(2) if leaf.is_complex() else part)
    return torch.cat(parts)


def _check_no_gradient(name: str, value: Any) -> None:
    if isinstance(value, Tensor) and value.requires_grad:
        raise AssertedInputError(explain(f"{name} requires a gradient", "a constant", f"pass {name}.detach()"))
