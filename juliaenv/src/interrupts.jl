# Ctrl-C during a solve: now and then, the field asks Python whether a signal is waiting.

"""Python's PyGILState_Ensure, PyErr_CheckSignals, PyErr_Clear and PyGILState_Release."""
mutable struct Signals
    ensure::Ptr{Cvoid}
    check::Ptr{Cvoid}
    clear::Ptr{Cvoid}
    release::Ptr{Cvoid}
    next::UInt64 # do not ask before, in nanoseconds
end

const SIGNALS = Signals(C_NULL, C_NULL, C_NULL, C_NULL, 0)

const PATIENCE = UInt64(20_000_000)

"""Throw if Python has a signal to handle. A Python handler runs in the main thread only: elsewhere this does nothing."""
@noinline function ask(signals::Signals, now::UInt64)
    signals.next = now + PATIENCE
    signals.check == C_NULL && return nothing
    state = ccall(signals.ensure, Cint, ())
    raised = ccall(signals.check, Cint, ())
    raised == 0 || ccall(signals.clear, Cvoid, ())
    ccall(signals.release, Cvoid, (Cint,), state)
    raised == 0 || throw(Stopped(:interrupt))
    return nothing
end

@inline function poll()
    now = time_ns()
    now < SIGNALS.next || ask(SIGNALS, now)
    return nothing
end
