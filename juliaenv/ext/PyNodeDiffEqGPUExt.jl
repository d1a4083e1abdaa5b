"""Ensembles of small systems in DiffEqGPU's kernels: one system a thread, of a GPU or of this machine."""
module PyNodeDiffEqGPUExt

using DiffEqGPU
using KernelAbstractions
using Logging
using PyNode
using SciMLBase
using StaticArrays

PyNode.kernel_backend(::Val{:cpu}) = CPU()

"""A program's tuple as the static vector that the kernels compute with; `polled` where Python may have a signal."""
struct Static{F, polled}
    f::F
end
@inline function (s::Static{F, polled})(u, p, t) where {F, polled}
    polled && PyNode.poll()
    return SVector(s.f(u, p, t))
end

"""What went wrong in a kernel, out of the tasks that ran it."""
cause(e) = e
cause(e::TaskFailedException) = cause(e.task.exception)
cause(e::CompositeException) = cause(first(e.exceptions))

columns(::Val{n}, x::Matrix{T}) where {n, T} =
    n == 0 ? fill(SVector{0, T}(), size(x, 2)) : collect(reinterpret(SVector{n, T}, vec(x)))

function PyNode.ensemble!(values, n::Val, np::Val, f, y0::Matrix{T}, p::Matrix{T}, times::Vector{T},
        ::Val{algorithm}; adaptive::Bool, rtol::T, atol::T, dt::T, backend) where {T, algorithm}
    rhs = ODEFunction{false, SciMLBase.FullSpecialize}(Static{typeof(f), backend isa CPU}(f))
    u0s, ps = columns(n, y0), columns(np, p)
    span = (times[1], times[end])
    model = ODEProblem{false}(rhs, u0s[1], span, ps[1])
    rows = [DiffEqGPU.make_prob_compatible(ODEProblem{false}(rhs, u, span, q)) for (u, q) in zip(u0s, ps)]
    problems = DiffEqGPU.adapt(backend, rows)
    method = getproperty(DiffEqGPU, algorithm)()
    reached, states = try
        # DiffEqGPU warns on every solve that runs on this machine
        with_logger(SimpleLogger(stderr, Logging.Error)) do
            solved = adaptive ?
                     DiffEqGPU.vectorized_asolve(problems, model, method; dt, saveat = times, abstol = atol,
                reltol = rtol) : DiffEqGPU.vectorized_solve(problems, model, method; dt, saveat = times)
            KernelAbstractions.synchronize(backend)
            solved
        end
    catch error
        why = cause(error)
        why isa ErrorException && why.msg == "dt<dtmin" || throw(why)
        return -1
    end
    copyto!(values, vec(reinterpret(T, vec(states))))
    return missed(Array(reached), times)
end

"""The first row whose last times still hold what DiffEqGPU put there before it started: the initial time."""
function missed(reached::AbstractMatrix, times)
    for row in axes(reached, 2), i in 2:length(times)
        reached[i, row] == times[i] || return row
    end
    return 0
end

end
