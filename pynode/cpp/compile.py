"""From C++ text to a loaded library: the compiler, and a cache of what it made."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pynode.compile_stats import COUNTS, announce
from pynode.cpp.emit import Program
from pynode.errors import UnsupportedError, explain

#: No -ffast-math: infinities and NaN are to come out as torch's.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fopenmp-simd",
    "-fPIC",
    "-shared",
)


@dataclass(frozen=True)
class Library:
    """A loaded library.

    Attributes
    ----------
    handle : ctypes.CDLL
    path : Path
    seconds : float
        What compiling took; 0 where the library was there.
    """

    handle: ctypes.CDLL
    path: Path
    seconds: float


@functools.cache
def compiler() -> str:
    """The C++ compiler: $CXX, or the first of c++, g++ and clang++.

    Raises
    ------
    UnsupportedError
        If there is none.
    """
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise UnsupportedError(
        explain(
            "there is no C++ compiler",
            "g++ or clang++ on the path, or in $CXX, for compile='solve'",
            'install g++, or choose compile="step" or compile=False',
        )
    )


@functools.cache
def _version(executable: str) -> str:
    done = subprocess.run([executable, "--version"], capture_output=True, text=True, check=False)
    return done.stdout


@functools.cache
def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        import platform

        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(sorted({x for x in lines if x.startswith(("model name", "flags", "Features", "CPU part"))}))


def cache_directory() -> Path:
    """$PYNODE_CACHE, or pynode in the user's cache."""
    given = os.environ.get("PYNODE_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pynode"


def library(source: str, flags: Sequence[str] = FLAGS) -> Library:
    """Compile C++ text, unless that has been done, and load it.

    Parameters
    ----------
    source : str
        One translation unit.
    flags : sequence of str
        The compiler's.

    Raises
    ------
    UnsupportedError
        Without a compiler, or if it refuses the text.
    """
    return _library(source, tuple(flags))


@functools.lru_cache(maxsize=256)
def _library(source: str, flags: tuple[str, ...]) -> Library:
    executable = compiler()
    key = "\0".join([source, *flags, executable, _version(executable), _processor()])
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    folder = cache_directory() / "cpp"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.so"
    seconds = 0.0
    if target.exists():
        COUNTS.from_disk += 1
    else:
        announce(f"compiling {len(source.splitlines())} lines of C++, once for this machine")
        began = time.perf_counter()
        _compile(executable, source, flags, target)
        seconds = time.perf_counter() - began
        COUNTS.compiled += 1
        COUNTS.seconds += seconds
    return Library(ctypes.CDLL(str(target)), target, seconds)


def _compile(executable: str, source: str, flags: Sequence[str], target: Path) -> None:
    """Into a folder of its own, then moved: processes that do the same at the same time do not meet."""
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        text, made = Path(name) / "field.cpp", Path(name) / "field.so"
        text.write_text(source, encoding="utf-8")
        command = [executable, *flags, str(text), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnsupportedError(
                explain(
                    f"{executable} failed with code {done.returncode}: {done.stderr.strip()[:2000]}",
                    "a compiler of C++17",
                    'choose compile="step" or compile=False, and report this',
                )
            )
        os.replace(made, target)


@functools.cache
def _gemms() -> dict[torch.dtype, int | None]:
    """Addresses of Fortran's matrix products with 32-bit integers: torch's, or SciPy's; None without either."""
    found: dict[torch.dtype, int | None] = {}
    for dtype, name in ((torch.float32, "sgemm"), (torch.float64, "dgemm")):
        found[dtype] = _of_torch(name) or _of_scipy(name)
    return found


def _of_torch(name: str) -> int | None:
    folder = Path(torch.__file__).parent / "lib"
    for path in (*folder.glob("libtorch_cpu.*"), *folder.glob("libopenblas*")):
        try:
            symbol = getattr(ctypes.CDLL(str(path)), f"{name}_")
        except (OSError, AttributeError):
            continue
        return ctypes.cast(symbol, ctypes.c_void_p).value
    return None


def _of_scipy(name: str) -> int | None:
    try:
        from scipy.linalg import cython_blas
    except ImportError:
        return None
    capsule = cython_blas.__pyx_capi__[name]
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    address: int | None = api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule))
    return address


def blas(dtype: torch.dtype) -> int | None:
    """The address of ``sgemm_`` or ``dgemm_``."""
    return _gemms()[dtype]


class CompiledField:
    """A program's functions, loaded.

    ``f``, ``forward``, ``backward``, ``vjp_t`` and ``tgrad`` are its C functions, called with addresses (``int``) and a
    time (``float``), as ``pynode.cpp.emit.HEADS`` lists them. They release the interpreter's lock.
    """

    def __init__(self, program: Program, flags: Sequence[str] = FLAGS) -> None:
        self.program = program
        self.library = library(program.source, flags)
        handle = self.library.handle
        handle.field_set_gemm.argtypes = [ctypes.c_void_p]
        handle.field_set_gemm(blas(program.dtype))
        self.f = self._function("f", 4)
        if program.products:
            self.forward = self._function("forward", 4)
            self.backward = self._function("backward", 6, 2)
            self.vjp_t = self._function("vjp_t", 4)
            self.vjp_t.restype = ctypes.c_float if program.dtype == torch.float32 else ctypes.c_double
            self.tgrad = self._function("tgrad", 4)

    def _function(self, name: str, before: int, after: int = 1) -> ctypes._NamedFuncPointer:
        function: ctypes._NamedFuncPointer = getattr(self.library.handle, f"field_{name}")
        function.argtypes = [*[ctypes.c_void_p] * before, ctypes.c_double, *[ctypes.c_void_p] * after]
        function.restype = None
        return function


def constants_table(constants: Sequence[torch.Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    """``c`` of the functions, for constants as ``Program.prepared`` gives them; it does not keep them alive."""
    return (ctypes.c_void_p * max(len(constants), 1))(*(x.data_ptr() for x in constants))
