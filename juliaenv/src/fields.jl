# Right-hand sides and their products, of one type for all models, so that the solvers are compiled once.

mutable struct Counts
    f::Int
    vjp::Int
    vjp_p::Int
end

"""
Stored states at some times (ascending), and how far from each the state was when a backward solve came there. The
last evaluation before the state is put back to the stored one is at the end of a step that was accepted.
"""
struct Anchors{V}
    times::Vector{Float64}
    states::Vector{V}
    distances::Vector{Float64}
    "So many leading channels count."
    counted::Int
end
Anchors(times, states::Vector{V}, counted) where {V} =
    Anchors{V}(times, states, zeros(length(times)), counted)

function compare!(anchors::Anchors, u, t)
    i = searchsortedfirst(anchors.times, t)
    i <= length(anchors.times) && anchors.times[i] == t || return nothing
    part = 1:(anchors.counted)
    distance = norm(view(u, part) .- view(anchors.states[i], part))
    distance == 0 || (anchors.distances[i] = distance) # put back already
    return nothing
end

"""The largest distance beyond `noise`, as a part of the state's size there or where it came from."""
function mismatch(anchors::Anchors, noise)
    part = 1:(anchors.counted)
    sizes = [Float64(norm(view(u, part))) for u in anchors.states]
    largest = 0.0
    for (i, distance) in enumerate(anchors.distances)
        beside = max(sizes[i], sizes[max(i - 1, 1)], sizes[min(i + 1, length(sizes))])
        over = isfinite(distance) ? max(distance - noise, 0.0) / max(beside, floatmin()) : Inf
        largest = max(largest, over)
    end
    return largest
end

"""
    Field{T, V}

A model on flat vectors `V` of numbers `T`: `f(du, u, p, t)`, `vjp(dλ, λ, u, p, t)`, `vjp_p(g, λ, u, p, t)` and
`tgrad(dT, u, p, t)`, each behind a function pointer.
"""
mutable struct Field{T, V <: AbstractVector{T}}
    const f::FunctionWrapper{Nothing, Tuple{V, V, V, Float64}}
    const vjp::FunctionWrapper{Nothing, Tuple{V, V, V, V, Float64}}
    const vjp_p::FunctionWrapper{Nothing, Tuple{V, V, V, V, Float64}}
    const tgrad::FunctionWrapper{Nothing, Tuple{V, V, V, Float64}}
    const n::Int
    const np::Int
    const counts::Counts
    # What solvers hand over may be parts of longer vectors: those are copied to and from these.
    const a::V
    const b::V
    const c::V
    const g::V
    "What refreshes values that the program holds, and other matter of its own."
    const own::Any
    "A parameter product is checked for infinities and NaNs, over which adaptive quadrature would not end."
    strict::Bool
    "Stored states that a solve backward in time has to come by."
    anchors::Union{Nothing, Anchors{V}}
end

function Field{T, V}(f, vjp, vjp_p, tgrad, n::Int, np::Int, own) where {T, V}
    empty() = fill!(V(undef, n), 0)
    return Field{T, V}(f, vjp, vjp_p, tgrad, n, np, Counts(0, 0, 0), empty(), empty(), empty(),
        fill!(V(undef, np), 0), own, false, nothing)
end

@inline taken(::V, x::V) where {V} = x
@inline taken(buffer::V, x) where {V} = copyto!(buffer, x)
@inline place(::V, x::V) where {V} = x
@inline place(buffer::V, x) where {V} = buffer
@inline put(x::V, ::V) where {V} = nothing
@inline put(x, buffer) = (copyto!(x, buffer); nothing)

struct RHS{F}
    field::F
end
function (r::RHS)(du, u, p, t)
    field = r.field
    field.counts.f += 1
    poll()
    out = place(field.a, du)
    y = taken(field.b, u)
    field.anchors === nothing || compare!(field.anchors, y, Float64(t))
    field.f(out, y, p, Float64(t))
    put(du, out)
    return nothing
end

struct VJP{F}
    field::F
end
function (r::VJP)(dλ, λ, u, p, t)
    field = r.field
    field.counts.vjp += 1
    poll()
    out = place(field.a, dλ)
    field.vjp(out, taken(field.c, λ), taken(field.b, u), p, Float64(t))
    put(dλ, out)
    return nothing
end

struct VJPP{F}
    field::F
end
function (r::VJPP)(g, λ, u, p, t)
    field = r.field
    field.np == 0 && return (fill!(g, 0); nothing) # SciML holds one number for none
    field.counts.vjp_p += 1
    poll()
    out = place(field.g, g)
    field.vjp_p(out, taken(field.c, λ), taken(field.b, u), p, Float64(t))
    field.strict && !isfinite(sum(out)) && throw(NotFinite())
    put(g, out)
    return nothing
end

"""The Jacobian, row by row from `vjp`: exact, and without a program of its own."""
struct JAC{F}
    field::F
end
function (r::JAC)(J, u, p, t)
    field = r.field
    row, λ = field.a, field.c
    y = taken(field.b, u)
    for i in 1:(field.n)
        fill!(λ, 0)
        view(λ, i:i) .= 1 # no scalar indexing on a device
        field.counts.vjp += 1
        field.vjp(row, λ, y, p, Float64(t))
        view(J, i, :) .= row
    end
    poll()
    return nothing
end

struct TGRAD{F}
    field::F
end
function (r::TGRAD)(dT, u, p, t)
    out = place(r.field.a, dT)
    r.field.tgrad(out, taken(r.field.b, u), p, Float64(t))
    put(dT, out)
    return nothing
end

"""The problem's function: with Jacobian for methods that need one."""
function odefunction(field::Field{T, V}, implicit::Bool, ::Nothing) where {T, V}
    if implicit
        prototype = fill!(similar(field.a, field.n, field.n), 0)
        return ODEFunction{true, SciMLBase.FullSpecialize}(RHS(field); vjp = VJP(field), vjp_p = VJPP(field),
            jac = JAC(field), tgrad = TGRAD(field), jac_prototype = prototype)
    end
    return ODEFunction{true, SciMLBase.FullSpecialize}(RHS(field); vjp = VJP(field), vjp_p = VJPP(field))
end
