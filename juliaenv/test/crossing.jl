# A solve and a gradient by the C functions that Python calls.

# A damped rotation, u' = p[1] * (u[2], -u[1]) - p[2] * u, in the form of emitted programs.
const TEXT = """
using LinearAlgebra: mul!
const turn = CuArray(T[0 -1; 1 0])
const w = CuArray{T}(undef, 2)
const constants = ()
function f!(du, u, p, t)
    mul!(du, transpose(turn), u)
    du .= du .* view(p, 1:1) .- u .* view(p, 2:2)
    return nothing
end
function vjp!(dλ, λ, u, p, t)
    mul!(dλ, turn, λ)
    dλ .= dλ .* view(p, 1:1) .- λ .* view(p, 2:2)
    return nothing
end
function vjp_p!(g, λ, u, p, t)
    mul!(w, transpose(turn), u)
    w .*= λ
    sum!(view(g, 1:1), w)
    w .= .-λ .* u
    sum!(view(g, 2:2), w)
    return nothing
end
tgrad!(dT, u, p, t) = (fill!(dT, 0); nothing)
"""

const TIMES = [0.5, 2.0]

"""Values at TIMES, and the gradient of their sum, for a field on device number `place`."""
function gradient(::Type{T}, text, place, algorithm, sensealg) where {T}
    raw_text = codeunits(text)
    y0, p, values, final = T[1, 0.5], T[2, 0.3], zeros(T, 4), zeros(T, 2)
    cotangents, dy0, dp, message = ones(T, 4), zeros(T, 2), zeros(T, 2), zeros(UInt8, 16384)
    times = copy(TIMES)
    GC.@preserve raw_text y0 p values final cotangents dy0 dp message times begin
        raw = Ref(PyNode.RawReply(PyNode.Reply(), 0, pointer(message), 16384))
        here = Base.unsafe_convert(Ptr{PyNode.RawReply}, raw)
        GC.@preserve raw begin
            PyNode.cross_program(pointer(raw_text), length(raw_text), Int32(T == Float64), 2, 2, Int32(place), here)
            raw[].status == PyNode.DONE || error(unsafe_string(raw[].message, raw[].length))
            field = raw[].solution
            call = PyNode.SolveCall(field, PyNode.hold(PyNode.named(algorithm)), pointer(y0), pointer(p), 0.0, 2.0,
                pointer(times), 2, pointer(values), pointer(final), 1.0e-6, 1.0e-6, C_NULL, C_NULL, C_NULL, 0, C_NULL, 0,
                0.0, 0.0, Inf, 10000, 2, 0, 1, 0, 1, place, 1, 0, C_NULL)
            solution = Base.invokelatest(PyNode.crossed, PyNode.cross_solve, call, raw)
            raw[].retcode == PyNode.SUCCESS || error("retcode ", raw[].retcode)
            back = PyNode.PullBackCall(solution, PyNode.hold(PyNode.named(sensealg)), 0, pointer(times), 2,
                pointer(cotangents), C_NULL, pointer(dy0), pointer(dp), 1.0e-6, 1.0e-6, C_NULL, C_NULL, 0, C_NULL, 0,
                C_NULL, 0, 0.0, 0.0, Inf, 10000, C_NULL, 0, 0, 1, 0, 0, 0, 0, 0.0)
            Base.invokelatest(PyNode.crossed, PyNode.cross_pull_back, back, raw)
            raw[].status == PyNode.DONE || error(unsafe_string(raw[].message, raw[].length))
        end
    end
    return values, dy0, dp
end

"""The expression of a sensitivity algorithm."""
function sensitivity(adjoint)
    options = adjoint == "QuadratureAdjoint" ? ", reltol = 1e-6, abstol = 1e-6" : ""
    return "$adjoint(autojacvec = ZygoteVJP()$options)"
end

const ADJOINTS = ("GaussAdjoint", "InterpolatingAdjoint", "BacksolveAdjoint", "QuadratureAdjoint")

in_memory(text, T) = "const T = $T\n" * replace(text, "CuArray" => "Array")
