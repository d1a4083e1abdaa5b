"""Julia inside this process: found, started on first use, entered from any thread. Configuration is read here only.

Julia is entered through C functions that adopt the calling thread, one thread at a time. The thread that started Julia
stays in what Julia calls a GC-safe region while it is in Python, so that Julia's garbage collector never waits for a
thread that waits for something else (torch's backward threads come while the main thread waits for them).

Environment variables: those of juliacall (``PYTHON_JULIACALL_*``) and juliapkg (``PYTHON_JULIAPKG_*``).
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pynode.errors import UnsupportedError, explain
from pynode.julia import inventory
from pynode.julia.crossing import Reply, checked, functions
from pynode.julia.latest import Latest

INSTALL = "pip install 'pynode[julia]' && pynode julia setup"
#: How many algorithms, controllers and sensitivity algorithms Julia holds for Python.
SETTINGS = 256


def installed() -> bool:
    """Whether the Python side (juliacall) is there; Julia itself may still have to be installed."""
    return importlib.util.find_spec("juliacall") is not None


def absent() -> str | None:
    """None where Julia can start without installing anything, else why it cannot.

    Nothing is started, resolved or downloaded.
    """
    if started():
        return None
    if not installed():
        return f"juliacall is not installed ({INSTALL})"
    if os.environ.get("PYTHON_JULIACALL_EXE") and os.environ.get("PYTHON_JULIACALL_PROJECT"):
        return None  # juliacall is told what to use and asks nobody
    import juliapkg.deps
    import juliapkg.state

    try:
        ready = juliapkg.deps.can_skip_resolve() or bool(juliapkg.state.STATE.get("offline"))
    except Exception as error:  # juliapkg raises whatever its configuration makes it raise
        return f"juliapkg: {error}"
    return None if ready else "Julia's packages are not installed yet (pynode julia setup)"


class Julia:
    """The running Julia.

    Attributes
    ----------
    main : juliacall module
        Julia's ``Main``, for what is not hot.
    """

    def __init__(self) -> None:
        self._forked = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._leave)
        self._lock = threading.RLock()
        self._dropped: deque[int] = deque()
        #: Numbers of algorithms, controllers and sensitivity algorithms, by expression, or by the identity of an object
        #: that is kept alive beside its number.
        self._settings: Latest[str | int, tuple[int, Any]] = Latest(SETTINGS, lambda kept: self.drop(kept[0]))
        self._loaded: set[str] = set()
        juliacall = _juliacall()
        self.main = juliacall.Main
        self._home = threading.get_ident()
        self._catches_faults = juliacall.CONFIG.get("opt_handle_signals") in ("yes", True)
        _give_back_interrupts()
        signals = [
            ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value
            for name in ("PyGILState_Ensure", "PyErr_CheckSignals", "PyErr_Clear", "PyGILState_Release")
        ]
        try:
            self.main.seval("import PyNode")
            self.main.seval("Base.exit_on_sigint(false)")
            text = str(self.main.PyNode.connect(*signals))
        except Exception as error:
            raise UnsupportedError(
                explain(
                    f"the Julia package PyNode could not be loaded: {str(error).strip().splitlines()[0]}",
                    "the Julia packages that pynode declares in juliapkg.json",
                    "run `pynode julia setup`; `pynode doctor` tells what is missing",
                )
            ) from error
        self._functions = functions({name: int(at) for name, at in (part.split("=") for part in text.split())})
        _park()

    def _check_process(self) -> None:
        """Raise UnsupportedError where Julia must not be entered."""
        if self._forked:
            raise UnsupportedError(
                explain(
                    "Julia was started in the parent of this forked process",
                    "a process that starts its own Julia",
                    "use the 'spawn' start method (torch.utils.data.DataLoader(multiprocessing_context='spawn'), "
                    "torch.multiprocessing.set_start_method('spawn'))",
                )
            )
        if not self._catches_faults and threading.get_ident() != self._home:
            raise UnsupportedError(
                explain(
                    "Julia was started by somebody else without its signal handlers, and is now needed in another "
                    "thread (a backward pass on CUDA, a worker thread), where its garbage collector would crash",
                    "Julia's signal handlers, or calls from the thread that started it",
                    "set PYTHON_JULIACALL_HANDLE_SIGNALS=yes before juliacall or diffeqpy is imported, or solve with "
                    "pynode first",
                )
            )

    @contextmanager
    def _inside(self) -> Iterator[None]:
        self._check_process()
        with self._lock:
            yield

    def _leave(self) -> None:
        self._forked = True

    def call(self, name: str, *args: Any) -> Reply:
        """Call a C function; its reply. Raises what the reply says."""
        reply = Reply()
        self._check_process()
        with self._lock:
            while self._dropped:
                self._functions["drop"](self._dropped.popleft())
            self._functions[name](*args, ctypes.byref(reply))
            reply.read()
        return checked(reply)

    def drop(self, number: int) -> None:
        """Let Julia forget what it holds under ``number``, at the next call. May run in a finaliser."""
        self._dropped.append(number)

    def named(self, expression: str) -> int:
        """The number of the algorithm, controller or sensitivity algorithm that a Julia expression means."""

        def make() -> tuple[int, None]:
            text = expression.encode()
            buffer = ctypes.create_string_buffer(text)
            return int(self.call("named", ctypes.addressof(buffer), len(text)).solution), None

        return self._settings.get(expression, make)[0]

    def held(self, thing: Any) -> int:
        """The number under which Julia holds an object of juliacall (one of diffeqpy's algorithms)."""

        def make() -> tuple[int, Any]:
            with self._inside():
                return int(self.main.PyNode.hold(thing)), thing

        return self._settings.get(id(thing), make)[0]

    def load(self, statement: str) -> None:
        """Run ``import ...``, once."""
        if statement not in self._loaded:
            with self._inside():
                self.main.seval(statement)
            self._loaded.add(statement)

    def need_adjoints(self) -> None:
        """Load SciMLSensitivity, which forward solves do without."""
        self.load("import SciMLSensitivity")


_STATE: dict[str, Julia] = {}
_START = threading.Lock()


def started() -> bool:
    """Whether Julia runs in this process already."""
    return "julia" in _STATE


def julia() -> Julia:
    """Julia, started if need be.

    Raises
    ------
    UnsupportedError
        If juliacall or the Julia packages are not there; the message has the command that installs them.
    """
    found = _STATE.get("julia")
    if found is not None:
        return found
    with _START:
        if "julia" not in _STATE:
            _STATE["julia"] = _in_lasting_thread(Julia)
        return _STATE["julia"]


def _in_lasting_thread(start: Callable[[], Julia]) -> Julia:
    """``start()``, in a thread that stays: Julia's first thread must not end before it."""
    if threading.current_thread() is threading.main_thread():
        return start()
    done = threading.Event()
    outcome: list[Any] = []

    def live() -> None:
        try:
            outcome.append(start())
        except BaseException as error:
            outcome.append(error)
        done.set()
        threading.Event().wait()

    threading.Thread(target=live, name="pynode-julia", daemon=True).start()
    done.wait()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    julia: Julia = outcome[0]
    return julia


def _juliacall() -> Any:
    if not installed():
        raise UnsupportedError(
            explain(
                "backend 'julia' needs juliacall, which is not installed",
                "juliacall and a Julia with SciML's packages",
                f"run {INSTALL}",
            )
        )
    # Julia stops its threads for a garbage collection by a fault that its signal handlers have to catch.
    os.environ.setdefault("PYTHON_JULIACALL_HANDLE_SIGNALS", "yes")
    os.environ.setdefault("PYTHON_JULIACALL_THREADS", "1")
    inventory.choose_image()
    with warnings.catch_warnings():
        # Both orders of import are tested; juliacall warns of one of them.
        warnings.filterwarnings("ignore", message="torch was imported before juliacall")
        try:
            import juliacall
        except Exception as error:
            raise UnsupportedError(
                explain(
                    f"juliacall could not start Julia: {error}", "a working Julia", f"run {INSTALL}, then pynode doctor"
                )
            ) from error
    return juliacall


def _give_back_interrupts() -> None:
    """Ctrl-C is Python's again: Julia keeps that signal from the thread that starts it, and waits for it elsewhere. A
    long solve asks Python for signals itself (juliaenv/src/interrupts.jl)."""
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "pthread_sigmask"):
        handler = signal.getsignal(signal.SIGINT)
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _park() -> None:
    """Put this thread into a GC-safe region for good; C functions of Julia leave it and come back by themselves."""
    library = ctypes.PyDLL(None)
    enter = getattr(library, "jl_gc_safe_enter", None) or getattr(library, "ijl_gc_safe_enter", None)
    if enter is None:
        return
    enter.restype = ctypes.c_int8
    enter()
