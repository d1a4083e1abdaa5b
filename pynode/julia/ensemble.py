"""Ensembles: one small system from many initial states, each solved by one thread of a kernel of DiffEqGPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from ctypes import c_double, c_int32, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from pynode.capture.capturing import Captured, capture
from pynode.dependencies import Dependencies
from pynode.errors import GradientError, InputError, SolveError, UnsupportedError, explain
from pynode.julia.emit_kernel import Kernel, kernel
from pynode.julia.runtime import Julia, julia
from pynode.layout import leaves_of, rebuild
from pynode.problem import ODEProblem, check_times
from pynode.solution import Counts, ReturnCode
from pynode.transforms import transformed

#: DiffEqGPU's methods; those of the second row are for stiff systems.
ALGORITHMS = (
    *("GPUTsit5", "GPUVern7", "GPUVern9"),
    *("GPURosenbrock23", "GPURodas4", "GPURodas5P", "GPUKvaerno3", "GPUKvaerno5"),
)
_PACKAGES = "import StaticArrays, KernelAbstractions, DiffEqGPU"


class EnsembleCall(ctypes.Structure):
    """``EnsembleCall`` of juliaenv/src/ensembles.jl."""

    _fields_ = (
        ("text", c_void_p),
        ("text_length", c_int64),
        ("algorithm", c_void_p),
        ("algorithm_length", c_int64),
        ("y0", c_void_p),
        ("own", c_void_p),
        ("shared", c_void_p),
        ("times", c_void_p),
        ("values", c_void_p),
        ("n", c_int64),
        ("rows", c_int64),
        ("nown", c_int64),
        ("nshared", c_int64),
        ("ntimes", c_int64),
        ("rtol", c_double),
        ("atol", c_double),
        ("dt", c_double),
        ("adaptive", c_int32),
        ("double", c_int32),
        ("device", c_int32),
    )


def solve_ensemble(
    f: Callable[..., Any],
    y0s: Tensor,
    t: Tensor | Sequence[float],
    *,
    args: tuple[Any, ...] = (),
    parameters: Sequence[Tensor] = (),
    algorithm: str = "GPUTsit5",
    rtol: float = 1e-5,
    atol: float = 1e-7,
    dt: float | None = None,
    device: str | torch.device | None = None,
) -> Tensor:
    """Solve ``dy/dt = f(t, y, *args, *own)`` from every row of ``y0s`` in one kernel launch, each with its own steps.

    ``f`` is written for one system, without a batch dimension. It is captured as scalar code that each thread of
    DiffEqGPU's ``EnsembleGPUKernel`` methods runs by itself, on a GPU or on this machine's processor. The GPU could not
    be tried where this was written; the same kernels were tested on the processor and on GPUArrays' reference arrays.

    Parameters
    ----------
    f : callable
        ``f(t, y, *args, *own)``: ``t`` 0-dim, ``y`` one row, the result of its shape and dtype. It may be a module. Up
        to 32 state numbers and 2000 scalar operations: elementwise operations, small products, reductions, indexing.
    y0s : tensor (B, ...), float32 or float64
        Initial states.
    t : 1-D tensor or sequence of float
        Strictly monotone times, in either direction, rounded to the dtype of ``y0s``.
    args : tuple
        What all systems share.
    parameters : sequence of tensors (B, ...)
        Each system's own arguments, row by row, after ``args``; of the dtype of ``y0s``.
    algorithm : str
        ``GPUTsit5``, ``GPUVern7``, ``GPUVern9``, and for stiff systems ``GPURosenbrock23``, ``GPURodas4``,
        ``GPURodas5P``, ``GPUKvaerno3``, ``GPUKvaerno5`` (their Jacobians by dual numbers).
    rtol, atol : float
        Tolerances of the adaptive steps; save points are interpolated.
    dt : float, optional
        Steps of this size instead, without error control.
    device : "cpu" or "cuda", optional
        Where the kernel runs; where ``y0s`` is by default.

    Returns
    -------
    Tensor (B, T, ...)
        The states at ``t``, on the device of ``y0s``.

    Raises
    ------
    InputError
        Naming the argument at fault.
    UnsupportedError
        If ``f`` cannot be scalar code, with the operator or the size; :func:`pynode.solve` on the batch can.
    GradientError
        If a gradient is required: ensembles have none. Use ``torch.no_grad()``, or :func:`pynode.solve` on the batch.
    SolveError
        If a row did not reach the last time.
    """
    _refuse_gradients([("y0s", y0s), ("t", t), *leaves_of(args, "args"), *leaves_of(parameters, "parameters")])
    _check(y0s, parameters, algorithm, {"rtol": rtol, "atol": atol, "dt": dt})
    times = _times(t, y0s.dtype)
    place = torch.device(device) if device is not None else y0s.device
    if place.type not in ("cpu", "cuda") or (place.index or 0) > 0:
        raise InputError(explain(f"device is {place}", "'cpu' or 'cuda' (the first GPU)", "move y0s there"))
    captured = _captured(f, y0s, times, args, parameters)
    return _run(kernel(captured), y0s, times, parameters, algorithm, rtol, atol, dt, place)


def _check(y0s: Tensor, parameters: Sequence[Tensor], algorithm: str, numbers: dict[str, float | None]) -> None:
    if not isinstance(y0s, Tensor) or y0s.dtype not in (torch.float32, torch.float64) or y0s.ndim < 1 or not len(y0s):
        came = f"{y0s.dtype} {tuple(y0s.shape)}" if isinstance(y0s, Tensor) else f"a {type(y0s).__name__}"
        raise InputError(
            explain(f"y0s is {came}", "a float32 or float64 tensor (B, ...), B > 0", "stack the initial states")
        )
    for index, x in enumerate(parameters):
        if not isinstance(x, Tensor) or x.dtype != y0s.dtype or x.shape[:1] != y0s.shape[:1]:
            came = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise InputError(
                explain(
                    f"parameters[{index}] is {came}",
                    f"a tensor of {y0s.dtype} with {len(y0s)} rows, one for each of y0s",
                    "pass what all rows share in args=",
                )
            )
    if algorithm not in ALGORITHMS:
        raise InputError(explain(f"algorithm={algorithm!r}", f"one of {', '.join(ALGORITHMS)}", "take GPUTsit5"))
    for name, value in numbers.items():
        if value is not None and not 0 < value < float("inf"):
            raise InputError(explain(f"{name}={value!r}", "a positive finite number", f"change {name}"))


def _times(t: Tensor | Sequence[float], dtype: torch.dtype) -> list[float]:
    _, given = check_times("t", t.detach() if isinstance(t, Tensor) else t)
    if len(given) < 2:
        raise InputError(explain(f"t has {len(given)} element(s)", "at least a start and an end time", "give both"))
    rounded: list[float] = torch.tensor(given, dtype=torch.float64).to(dtype).tolist()
    check_times(f"t, rounded to {dtype},", rounded)
    return rounded


def _captured(
    f: Callable[..., Any], y0s: Tensor, times: list[float], args: tuple[Any, ...], parameters: Sequence[Tensor]
) -> Captured:
    """``f`` of the first row, its own arguments as the slots of the parameter vector."""
    if not isinstance(args, tuple):
        raise InputError(
            explain(f"args is a {type(args).__name__}", "a tuple of what f takes after (t, y)", "write args=(value,)")
        )
    leaves = (x.detach() if isinstance(x, Tensor) else x for _, x in leaves_of(args, "args"))
    shared: tuple[Any, ...] = rebuild(args, leaves)
    own = tuple(x[0].detach().clone().requires_grad_() for x in parameters)
    # Where a gradient may be wanted, whatever f reaches is looked at for tensors that require one.
    explicit = None if torch.is_grad_enabled() else ()
    with torch.enable_grad():
        problem = ODEProblem(f, y0s[0].detach().clone(), times, (*shared, *own))
        dependencies = Dependencies(problem, Counts(), explicit, True)
        _refuse_gradients([("a tensor that f uses", x) for x in dependencies.parameters], explicit is None)
        return capture(problem, dependencies, products=False)


def _refuse_gradients(tensors: Iterable[tuple[str, Any]], enabled: bool | None = None) -> None:
    enabled = torch.is_grad_enabled() if enabled is None else enabled
    needing = [name for name, x in tensors if enabled and isinstance(x, Tensor) and x.requires_grad]
    if needing or transformed():
        why = f"{needing[0]} requires a gradient" if needing else "solve_ensemble inside a torch.func transform"
        raise GradientError(
            explain(
                f"{why}; ensembles have none",
                "a solve without derivatives",
                "call it under torch.no_grad(), or use pynode.solve on the batch",
            )
        )


def _run(
    emitted: Kernel,
    y0s: Tensor,
    times: list[float],
    parameters: Sequence[Tensor],
    algorithm: str,
    rtol: float,
    atol: float,
    dt: float | None,
    place: torch.device,
) -> Tensor:
    rows, dtype = len(y0s), y0s.dtype

    def host(parts: list[Tensor], *shape: int) -> Tensor:
        flat = [x.detach().reshape(*shape).to("cpu", dtype) for x in parts]
        return torch.cat(flat, -1).contiguous() if flat else torch.empty(*shape[:-1], 0, dtype=dtype)

    y0, own, shared = host([y0s], rows, -1), host(list(parameters), rows, -1), host(list(emitted.shared), -1)
    n = y0.shape[1]
    values = torch.empty(rows, len(times), n, dtype=dtype, device=place)
    texts = [ctypes.create_string_buffer(x.encode()) for x in (emitted.source, algorithm)]
    at = (c_double * len(times))(*times)
    call = EnsembleCall(
        text=ctypes.addressof(texts[0]),
        text_length=len(texts[0].value),
        algorithm=ctypes.addressof(texts[1]),
        algorithm_length=len(texts[1].value),
        y0=y0.data_ptr(),
        own=own.data_ptr(),
        shared=shared.data_ptr(),
        times=ctypes.addressof(at),
        values=values.data_ptr(),
        n=n,
        rows=rows,
        nown=own.shape[1],
        nshared=len(shared),
        ntimes=len(times),
        rtol=rtol,
        atol=atol,
        dt=_first_step(times, dtype) if dt is None else dt,
        adaptive=dt is None,
        double=dtype == torch.float64,
        device=place.type == "cuda",
    )
    engine = julia()
    _load(engine, place)
    if place.type == "cuda":
        torch.cuda.current_stream(place).synchronize()
    reply = engine.call("ensemble", ctypes.addressof(call))
    row = int(reply.saved)
    if row == 0 and not values.isfinite().all():
        row = 1 + int((~values.isfinite()).flatten(1).any(1).nonzero()[0])
    if row:
        raise _failure(row, times)
    return values.reshape(rows, len(times), *y0s.shape[1:]).to(y0s.device)


def _failure(row: int, times: list[float]) -> SolveError:
    """``row`` counts from 1; -1 means that it is not known which."""
    which, code = (f"system {row - 1}", ReturnCode.Unstable) if row > 0 else ("a system", ReturnCode.DtLessThanMin)
    return SolveError(
        explain(
            f"{which} of the ensemble did not reach t = {times[-1]:.9g} because {code.value}",
            "every system to have a finite solution up to the last time",
            "solve the batch with pynode.solve to see where it stops; take a method for stiff systems (GPURodas5P), a "
            "smaller dt, or looser tolerances",
        ),
        code,
        times[0],
    )


def _first_step(times: list[float], dtype: torch.dtype) -> float:
    """A step small enough for any field: DiffEqGPU accepts a step to a NaN, and a step grows tenfold each time."""
    largest = max(abs(times[0]), abs(times[-1]))
    return max(1e-6 * abs(times[-1] - times[0]), 4 * torch.finfo(dtype).eps * largest)


def _load(engine: Julia, place: torch.device) -> None:
    """Load the packages of ensembles, which other solves do without."""
    try:
        engine.load(_PACKAGES)
        if place.type == "cuda":
            engine.load("import CUDA")
    except Exception as error:
        raise UnsupportedError(
            explain(
                f"the Julia packages of ensembles could not be loaded: {str(error).strip().splitlines()[0]}",
                "DiffEqGPU, StaticArrays and KernelAbstractions (and CUDA for a GPU) in pynode's Julia environment",
                "run `pynode julia setup`",
            )
        ) from error
