# What goes wrong, and how it is told to Python.

"""The solve was stopped from outside: an exception in a Python callback, or a signal."""
struct Stopped <: Exception
    what::Symbol # :callback or :interrupt
end

"""Something that Python reports as it stands."""
struct Refused <: Exception
    message::String
end
Base.showerror(io::IO, e::Refused) = print(io, e.message)

"""A product that was not finite where quadrature would not end over it."""
struct NotFinite <: Exception end
Base.showerror(io::IO, ::NotFinite) = print(io, "a product with the Jacobian is not finite")

"""A warning of a reverse solve, whose return code SciMLSensitivity drops: the gradient would be wrong."""
struct ReverseWarning <: Exception
    message::String
end
Base.showerror(io::IO, e::ReverseWarning) = print(io, e.message)

"""A logger under which a warning is an exception."""
struct Strict <: AbstractLogger end
Logging.min_enabled_level(::Strict) = Logging.Warn
Logging.shouldlog(::Strict, level, _module, group, id) = true
Logging.catch_exceptions(::Strict) = false
Logging.handle_message(::Strict, level, message, args...; options...) = throw(ReverseWarning(string(message)))

const SUCCESS, MAXITERS, DTMIN, UNSTABLE, INITIAL, OTHER = Int32.(0:5)

"""The number Python knows a return code by."""
function code(retcode)
    SciMLBase.successful_retcode(retcode) && return SUCCESS
    retcode == ReturnCode.MaxIters && return MAXITERS
    retcode in (ReturnCode.DtLessThanMin, ReturnCode.DtNaN) && return DTMIN
    retcode in (ReturnCode.Unstable, ReturnCode.ConvergenceFailure) && return UNSTABLE
    retcode == ReturnCode.InitialFailure && return INITIAL
    return OTHER
end

# How a crossing ended.
const DONE, STOPPED, INTERRUPTED, REFUSED, REVERSE_WARNING, FAILED, NOT_FINITE = Int32.(0:6)

"""Run `work` and write how it ended into `reply`."""
function guarded(work, reply)
    message = ""
    status = DONE
    try
        work()
    catch error
        if error isa Stopped
            status = error.what === :interrupt ? INTERRUPTED : STOPPED
        elseif error isa InterruptException
            status = INTERRUPTED
        elseif error isa ReverseWarning
            status, message = REVERSE_WARNING, error.message
        elseif error isa Refused
            status, message = REFUSED, error.message
        elseif error isa NotFinite
            status = NOT_FINITE
        else
            status, message = FAILED, sprint(showerror, error, catch_backtrace())
        end
    end
    finish!(reply, status, message)
    return nothing
end
