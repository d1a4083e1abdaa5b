"""The solver in C++ (the files in ``solver/``): its structures, and tableaus as it reads them."""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, Structure, c_double, c_int64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pynode.cpp.compile import library
from pynode.native.tableaus import Tableau

#: How a call ended, if it reached its end.
SUCCESS = 0

_FILES = ("calls", "field", "error_norm", "solver", "reverse", "entry")


class Method(Structure):
    """A tableau: its sizes, and the addresses of its coefficients."""

    _fields_ = [
        *((name, c_int64) for name in ("stages", "all", "needed", "fsal", "error_order", "degree")),
        *((name, c_void_p) for name in ("c", "a", "b", "error", "error_low", "dense")),
    ]


class FieldCall(Structure):
    """The field of a call: its functions and constants."""

    _fields_ = [
        *((name, c_int64) for name in ("n", "parameters", "f_work", "joint_work", "backward_work")),
        *((name, c_void_p) for name in ("f", "forward", "backward", "constants")),
    ]


class SolveCall(Structure):
    """A solve: what is asked, and behind ``python`` what came of it."""

    _fields_ = [
        ("field", FieldCall),
        ("method", POINTER(Method)),
        ("measured", c_int64),
        *((name, c_double) for name in ("pcoeff", "icoeff", "dcoeff", "safety", "factormin", "factormax")),
        *((name, c_double) for name in ("deadband", "t0", "t1")),
        *((name, c_void_p) for name in ("y0", "derivative", "parts", "lengths")),
        ("n_parts", c_int64),
        *((name, c_void_p) for name in ("rtol", "atol")),
        *((name, c_int64) for name in ("rtols", "atols")),
        *((name, c_double) for name in ("dt0", "dtmin", "dtmax")),
        *((name, c_int64) for name in ("force_dtmin", "max_steps")),
        ("stops", c_void_p),
        ("n_stops", c_int64),
        ("times", c_void_p),
        ("n_times", c_int64),
        ("values", c_void_p),
        ("mesh", c_void_p),
        ("n_mesh", c_int64),
        ("keep", c_int64),
        ("budget", c_int64),
        ("python", c_void_p),
        *((name, c_int64) for name in ("ended", "nfe", "accepted", "rejected", "saved", "steps")),
        ("size", c_double),
        *((name, c_void_p) for name in ("solution", "boundaries", "states", "end")),
    ]


class PullBackCall(Structure):
    """A pullback of a solve."""

    _fields_ = [
        ("field", FieldCall),
        ("method", POINTER(Method)),
        *((name, c_void_p) for name in ("solution", "cotangents", "dy0", "dp", "python")),
        *((name, c_int64) for name in ("ended", "nfe", "nvjp", "steps", "finite")),
    ]


class Driver:
    """The functions of the compiled solver for one precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        library = _loaded()
        kind = "f32" if dtype == torch.float32 else "f64"
        self.solve: Any = getattr(library, f"pynode_solve_{kind}")
        self.pull_back: Any = getattr(library, f"pynode_pull_back_{kind}")
        self.drop: Any = getattr(library, f"pynode_drop_{kind}")
        self.drop.argtypes = [c_void_p]
        self.solve.restype = self.pull_back.restype = self.drop.restype = None


@functools.cache
def driver(dtype: torch.dtype) -> Driver:
    """The solver for a state's dtype, compiled at its first use on a machine."""
    return Driver(dtype)


@functools.cache
def _loaded() -> ctypes.PyDLL:
    folder = Path(__file__).with_name("solver")
    text = "\n".join((folder / f"{name}.hpp").read_text(encoding="utf-8") for name in _FILES)
    # It is called with Python's lock, which it lets go of itself.
    handle = ctypes.PyDLL(str(library(text).path))
    handle.pynode_sizes.restype = c_int64
    for which, structure in enumerate((Method, FieldCall, SolveCall, PullBackCall)):
        assert handle.pynode_sizes(c_int64(which)) == ctypes.sizeof(structure)
    return handle


@functools.lru_cache(maxsize=64)
def method_of(tableau: Tableau) -> tuple[Method, list[np.ndarray[Any, Any]]]:
    """A tableau in C, and the arrays it points to."""
    stages, every = len(tableau.c), len(tableau.c) + len(tableau.dense_c)
    rows = np.zeros((every, every))
    for i, row in enumerate((*tableau.a, *tableau.dense_a)):
        rows[i, : len(row)] = row
    dense = np.array(tableau.dense_b, dtype=np.float64).reshape(every, -1)
    arrays = {
        "c": np.array((*tableau.c, *tableau.dense_c)),
        "a": rows,
        "b": np.array(tableau.b),
        "error": None if tableau.b_error is None else np.array(tableau.b_error),
        "error_low": None if tableau.b_error_low is None else np.array(tableau.b_error_low),
        "dense": dense,
    }
    method = Method(
        stages=stages,
        all=every,
        needed=max(i for i, weight in enumerate(tableau.b) if weight) + 1,
        fsal=int(tableau.fsal),
        error_order=tableau.error_order or tableau.order,
        degree=dense.shape[1],
        **{name: None if x is None else x.ctypes.data for name, x in arrays.items()},
    )
    return method, [x for x in arrays.values() if x is not None]


class Python(Structure):
    """Python's own functions that C++ calls: to let go of the lock, and to run signal handlers."""

    _fields_ = [(name, c_void_p) for name in ("save", "restore", "signals")]


def _address(name: str) -> int | None:
    return ctypes.cast(getattr(ctypes.pythonapi, name), c_void_p).value


_PYTHON = Python(_address("PyEval_SaveThread"), _address("PyEval_RestoreThread"), _address("PyErr_CheckSignals"))

#: What calls point to.
PYTHON = ctypes.addressof(_PYTHON)
