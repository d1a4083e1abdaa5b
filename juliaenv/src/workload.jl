# What is compiled when the package is installed, so that a user's first solve does not wait for it.

"""A field of two numbers with two parameters, through the crossing as Python goes."""
function rehearse(::Type{T}, work) where {T}
    f = (du, u, p, t) -> (du[1] = p[1] * u[2]; du[2] = -p[2] * u[1]; nothing)
    vjp = (dλ, λ, u, p, t) -> (dλ[1] = -p[2] * λ[2]; dλ[2] = p[1] * λ[1]; nothing)
    vjp_p = (g, λ, u, p, t) -> (g[1] = u[2] * λ[1]; g[2] = -u[1] * λ[2]; nothing)
    tgrad = (dT, u, p, t) -> (fill!(dT, 0); nothing)
    field = hold(Field{T, Vector{T}}(f, vjp, vjp_p, tgrad, 2, 2, nothing))
    y0, p, values, final = T[1, 0], T[1, 1], zeros(T, 4), zeros(T, 2)
    times = [0.5, 1.0]
    message = zeros(UInt8, 1024)
    raw = Ref(RawReply(Reply(), 0, pointer(message), 1024))
    GC.@preserve y0 p values final times message begin
        work(field, (; y0, p, values, final, times, raw))
    end
    release(field)
    return nothing
end

solve_rehearsal(field, algorithm, v; keep = 1) = SolveCall(field, algorithm, pointer(v.y0), pointer(v.p), 0.0, 1.0,
    pointer(v.times), 2, pointer(v.values), pointer(v.final), 1.0e-4, 1.0e-6, C_NULL, C_NULL, C_NULL, 0, C_NULL, 0, 0.0,
    0.0, Inf, 10000, 2, 0, 1, 0, keep, 0, 1, 0, C_NULL)

function crossed(cross, call, raw)
    box = Ref(call)
    GC.@preserve box raw cross(Base.unsafe_convert(Ptr{typeof(call)}, box), Base.unsafe_convert(Ptr{RawReply}, raw))
    raw[].status == DONE || error("the rehearsal failed: ", unsafe_string(raw[].message, raw[].length))
    return raw[].solution
end

const METHODS = (OrdinaryDiffEqTsit5.Tsit5(), OrdinaryDiffEqLowOrderRK.DP5())

function solve_workload()
    for T in (Float32, Float64), method in METHODS
        algorithm = hold(method)
        rehearse(T, (field, v) -> (release(crossed(cross_solve, solve_rehearsal(field, algorithm, v), v.raw))))
        release(algorithm)
    end
    return nothing
end

@compile_workload solve_workload()
