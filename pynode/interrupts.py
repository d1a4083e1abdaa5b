"""Ctrl-C at any moment: what it keeps a context manager from putting back is put back at the door.

Python runs signal handlers at the entrance of functions, that of ``__exit__`` among them (torch's ``no_grad`` leaves
through three): what an interrupt cuts short there stays as it was inside.
"""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


class Modes:
    """The modes of this thread that pynode changes while it works, as they are when this object is made."""

    __slots__ = ("_autocast", "_depth", "_gradients")

    def __init__(self) -> None:
        self._gradients = torch.is_grad_enabled()
        self._depth = torch._C._functorch.get_dynamic_layer_stack_depth()
        self._autocast = [_Autocast(device) for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]

    def restore(self) -> None:
        """Put them back."""
        torch.set_grad_enabled(self._gradients)
        if torch._C._functorch.get_dynamic_layer_stack_depth() > self._depth:
            torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(self._depth)
        for one in self._autocast:
            one.restore()


class _Autocast:
    """That of a device, where it is on."""

    def __init__(self, device: str) -> None:
        self._device, self._dtype = device, torch.get_autocast_dtype(device)
        self._cached, self._nesting = torch.is_autocast_cache_enabled(), _nesting()

    def restore(self) -> None:
        torch.set_autocast_enabled(self._device, True)
        torch.set_autocast_dtype(self._device, self._dtype)
        torch.set_autocast_cache_enabled(self._cached)
        while _nesting() > self._nesting:
            torch.autocast_decrement_nesting()


def _nesting() -> int:
    torch.autocast_increment_nesting()
    found: int = torch.autocast_decrement_nesting()
    return found


class Deferred:
    """A context that Ctrl-C reaches at its end only; a second one comes through at once.

    For torch's tracers: an exception out of a signal handler that runs while C++ asks a fake tensor for something ends
    the process ("terminate called after throwing an instance of 'python_error'").
    """

    def __init__(self) -> None:
        self._own: Any = None
        self._waiting: tuple[int, FrameType | None] | None = None

    def __enter__(self) -> None:
        own = signal.getsignal(signal.SIGINT)
        # Only the main thread runs handlers, and only it may exchange them.
        if callable(own) and threading.current_thread() is threading.main_thread():
            self._own = own
            signal.signal(signal.SIGINT, self._arrived)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self._waiting is not None:
            self._own(number, frame)
        self._waiting = (number, frame)

    def __exit__(self, *error: object) -> None:
        if self._own is not None:
            signal.signal(signal.SIGINT, self._own)
            if self._waiting is not None:
                self._own(*self._waiting)


def puts_back(function: Callable[P, T]) -> Callable[P, T]:
    """``function``, which leaves the modes of its thread as they were where Ctrl-C ends it.

    A StopIteration of the user's comes out as it was raised: Python makes a RuntimeError of one that crosses a
    generator, such as those that go through the steps of a solve backward.
    """

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        before = Modes()
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt:
            before.restore()
            raise
        except RuntimeError as error:
            if isinstance(error.__cause__, StopIteration) and _in_pynode(error):
                raise error.__cause__ from None
            raise

    return called


def _in_pynode(error: BaseException) -> bool:
    """Whether pynode's own code met the exception first, not what it calls."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and str(last.tb_frame.f_globals.get("__name__")).partition(".")[0] == "pynode"
