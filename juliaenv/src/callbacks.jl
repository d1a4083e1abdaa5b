# Models that cannot be turned into text: Python is called back.

"""
Pointers to Python's functions and to the vectors it works on, which it keeps alive. A function sets `status` to 1
when it succeeded; nothing that happens in Python, a signal at its door included, can pass for success.
"""
struct Callback{T}
    f::Ptr{Cvoid}
    vjp::Ptr{Cvoid}
    tgrad::Ptr{Cvoid}
    u::Vector{T}
    λ::Vector{T}
    du::Vector{T}
    dλ::Vector{T}
    g::Vector{T}
    status::Vector{Int32}
end

const STATE, PARAMETERS, BOTH = Cint.(1:3)

mutable struct Called{T}
    const callback::Callback{T}
    "Which products the last call made, at `t` and the vectors in the callback."
    made::Cint
    t::Float64
    "Adjoint methods that need both products at one place get them in one call."
    joint::Bool
end

function check(c::Callback)
    c.status[1] == 1 || throw(Stopped(:callback))
    return nothing
end

function value!(c::Called{T}, du, u, p, t) where {T}
    b = c.callback
    c.made = 0
    copyto!(b.u, u)
    b.status[1] = 0
    ccall(b.f, Cvoid, (Cdouble,), t)
    check(b)
    copyto!(du, b.du)
    return nothing
end

function products!(c::Called, which::Cint, λ, u, t)
    b = c.callback
    if (c.made & which) == which && c.t == t && b.u == u && b.λ == λ
        return nothing
    end
    which = c.joint ? BOTH : which
    copyto!(b.u, u)
    copyto!(b.λ, λ)
    c.made = 0
    b.status[1] = 0
    ccall(b.vjp, Cvoid, (Cdouble, Cint), t, which)
    check(b)
    c.made, c.t = which, t
    return nothing
end

function callback_field(::Type{T}, pointers::NTuple{3, Ptr{Cvoid}}, vectors::NTuple{6, Ptr{Cvoid}}, n::Int,
        np::Int) where {T}
    u, λ, du, dλ = (device_array(Val(:cpu), T, vectors[i], n) for i in 1:4)
    g = device_array(Val(:cpu), T, vectors[5], np)
    status = device_array(Val(:cpu), Int32, vectors[6], 1)
    called = Called{T}(Callback{T}(pointers..., u, λ, du, dλ, g, status), 0, 0.0, false)
    f = (du, u, p, t) -> value!(called, du, u, p, t)
    vjp = (dλ, λ, u, p, t) -> (products!(called, STATE, λ, u, t); copyto!(dλ, called.callback.dλ); nothing)
    vjp_p = (g, λ, u, p, t) -> (products!(called, PARAMETERS, λ, u, t); copyto!(g, called.callback.g); nothing)
    tgrad = function (dT, u, p, t)
        b = called.callback
        called.made = 0
        copyto!(b.u, u)
        b.status[1] = 0
        ccall(b.tgrad, Cvoid, (Cdouble,), t)
        check(b)
        copyto!(dT, b.du)
        return nothing
    end
    return Field{T, Vector{T}}(f, vjp, vjp_p, tgrad, n, np, called)
end

"""Whether both products are wanted wherever one is."""
join!(field::Field, joint::Bool) = (field.own isa Called && (field.own.joint = joint); nothing)
