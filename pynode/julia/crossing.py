"""The C functions of juliaenv/src/crossing.jl: their arguments, their replies, and what a reply means.

Julia is called through plain function pointers and gets raw addresses, so that a crossing costs microseconds and the
interpreter's lock is free while Julia works.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char, c_double, c_int32, c_int64, c_void_p
from typing import Any

from pynode.errors import PynodeError, UnsupportedError, explain

_MESSAGE = 16384
_ROOM = (c_char * _MESSAGE)()
_ADDRESS = ctypes.addressof(_ROOM)


class _Call(ctypes.Structure):
    arrays: list[Any]
    """What has to live as long as the addresses in the call are used."""


class SolveCall(_Call):
    """``SolveCall`` of juliaenv/src/solving.jl."""

    _fields_ = (
        ("field", c_int64),
        ("algorithm", c_int64),
        ("y0", c_void_p),
        ("p", c_void_p),
        ("t0", c_double),
        ("t1", c_double),
        ("times", c_void_p),
        ("ntimes", c_int64),
        ("values", c_void_p),
        ("final", c_void_p),
        ("rtol", c_double),
        ("atol", c_double),
        ("rtols", c_void_p),
        ("atols", c_void_p),
        ("stops", c_void_p),
        ("nstops", c_int64),
        ("jumps", c_void_p),
        ("njumps", c_int64),
        ("dt", c_double),
        ("dtmin", c_double),
        ("dtmax", c_double),
        ("maxiters", c_int64),
        ("norm_size", c_int64),
        ("controller", c_int64),
        ("adaptive", c_int32),
        ("force_dtmin", c_int32),
        ("keep", c_int32),
        ("device", c_int32),
        ("hold", c_int32),
        ("march", c_int32),
        ("mass", c_void_p),
    )


class PullBackCall(_Call):
    """``PullBackCall`` of juliaenv/src/pulling_back.jl."""

    _fields_ = (
        ("solution", c_int64),
        ("sensealg", c_int64),
        ("algorithm", c_int64),
        ("times", c_void_p),
        ("ntimes", c_int64),
        ("cotangents", c_void_p),
        ("slopes", c_void_p),
        ("dy0", c_void_p),
        ("dp", c_void_p),
        ("rtol", c_double),
        ("atol", c_double),
        ("rtols", c_void_p),
        ("atols", c_void_p),
        ("ntols", c_int64),
        ("stops", c_void_p),
        ("nstops", c_int64),
        ("jumps", c_void_p),
        ("njumps", c_int64),
        ("dt", c_double),
        ("dtmin", c_double),
        ("dtmax", c_double),
        ("maxiters", c_int64),
        ("ranges", c_void_p),
        ("nranges", c_int64),
        ("controller", c_int64),
        ("adaptive", c_int32),
        ("force_dtmin", c_int32),
        ("joint", c_int32),
        ("strict", c_int32),
        ("checked", c_int64),
        ("noise", c_double),
    )


class Reply(ctypes.Structure):
    """``RawReply`` of juliaenv/src/crossing.jl."""

    _fields_ = (
        ("status", c_int32),
        ("retcode", c_int32),
        ("t", c_double),
        ("solution", c_int64),
        ("nf", c_int64),
        ("nvjp", c_int64),
        ("nvjp_p", c_int64),
        ("accepted", c_int64),
        ("rejected", c_int64),
        ("saved", c_int64),
        ("steps", c_int64),
        ("mismatch", c_double),
        ("finite", c_int64),
        ("length", c_int64),
        ("message", c_void_p),
        ("capacity", c_int64),
    )

    def __init__(self) -> None:
        super().__init__(message=_ADDRESS, capacity=_MESSAGE)
        #: What Julia had to say.
        self.text = ""

    def read(self) -> None:
        """Take the text out of the room that all replies share, before another one is written there."""
        if self.length:
            self.text = bytes(memoryview(_ROOM)[: self.length]).decode(errors="replace")


#: How a crossing ended, as in juliaenv/src/messages.jl.
DONE, STOPPED, INTERRUPTED, REFUSED, REVERSE_WARNING, FAILED, NOT_FINITE = range(7)

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "solve": (POINTER(SolveCall), POINTER(Reply)),
    "pull_back": (POINTER(PullBackCall), POINTER(Reply)),
    "evaluate": (c_int64, c_void_p, c_int64, c_int32, c_void_p, POINTER(Reply)),
    "advance": (c_int64, POINTER(Reply)),
    "finish": (c_int64, POINTER(Reply)),
    "steps": (c_int64, c_void_p, c_void_p, POINTER(Reply)),
    "program": (c_void_p, c_int64, c_int32, c_int64, c_int64, c_int32, POINTER(Reply)),
    "constant": (c_int64, c_int64, c_void_p, c_int32, POINTER(Reply)),
    "callback": (c_void_p, c_int32, c_int64, c_int64, POINTER(Reply)),
    "named": (c_void_p, c_int64, POINTER(Reply)),
    "field": (c_int64, c_int32, c_void_p, c_void_p, c_void_p, c_void_p, c_double, c_int32, POINTER(Reply)),
    "ensemble": (c_void_p, POINTER(Reply)),
    "drop": (c_int64,),
}


class JuliaError(PynodeError, RuntimeError):
    """Julia threw an exception that is none of pynode's own; the message is Julia's, with its backtrace."""


class ReverseSolveError(PynodeError, RuntimeError):
    """A warning of a reverse solve, to be told with what was being solved."""


class NotFiniteError(PynodeError, RuntimeError):
    """A product was not finite during a reverse solve."""


class CallbackError(PynodeError, RuntimeError):
    """Python code that Julia had called raised; the route that owns the code knows what."""


def functions(addresses: dict[str, int]) -> dict[str, Any]:
    """The C functions at ``addresses``. They release the interpreter's lock."""
    return {name: ctypes.CFUNCTYPE(None, *_SIGNATURES[name])(address) for name, address in addresses.items()}


def checked(reply: Reply) -> Reply:
    """``reply``, after raising what went wrong."""
    status = reply.status
    if status == DONE:
        return reply
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    if status == STOPPED:
        raise CallbackError("a Python callback failed")
    text = reply.text
    if status == NOT_FINITE:
        raise NotFiniteError("a product with the Jacobian is not finite")
    if status == REFUSED:
        raise UnsupportedError(
            explain(
                f"Julia: {text}",
                "what its packages offer",
                "check the name and its options; `pynode julia setup` installs pynode's packages, "
                "`pynode doctor` lists them",
            )
        )
    if status == REVERSE_WARNING:
        raise ReverseSolveError(text)
    raise JuliaError(
        explain(
            f"Julia threw an exception: {text}",
            "no exception",
            "check options that Julia may not accept together; else report it with this text",
        )
    )
