# Torch modules as Lux layers: what Lux does not have itself, and how a model's text becomes one.
module PyNodeLuxExt

using ComponentArrays: ComponentArray
using Lux
using PyNode: PyNode
using Random: Xoshiro

"""
    Activation(f, constants...)

`f.(x, constants...)`, the constants taken as numbers of the type of `x`.
"""
struct Activation{F, C <: Tuple} <: AbstractLuxLayer
    f::F
    constants::C
end
Activation(f, constants...) = Activation(f, constants)
(l::Activation)(x, ps, st) = (broadcast(l.f, x, map(eltype(x), l.constants)...), st)
Base.show(io::IO, l::Activation) = print(io, "Activation(", join((l.f, l.constants...), ", "), ")")

# As torch defines them.
softplus_above(x, β, threshold) = ifelse(x * β > threshold, x, softplus(x * β) / β)
hard_tanh(x, low, high) = clamp(x, low, high)
hard_sigmoid(x) = clamp(x + 3, zero(x), oftype(x, 6)) / 6
hard_swish(x) = x * hard_sigmoid(x)
exp_linear(x, α) = ifelse(x > 0, x, α * expm1(min(x, zero(x))))
continuous_exp_linear(x, α) = ifelse(x > 0, x, α * expm1(min(x / α, zero(x))))
scaled_exp_linear(x) = oftype(x, 1.0507009873554805) * exp_linear(x, oftype(x, 1.6732632423543772))
leaky(x, slope) = ifelse(x > 0, x, slope * x)
soft_shrink(x, λ) = ifelse(x > λ, x - λ, ifelse(x < -λ, x + λ, zero(x)))
hard_shrink(x, λ) = ifelse(abs(x) > λ, x, zero(x))
above(x, threshold, value) = ifelse(x > threshold, x, value)

"""Dimension `d` of a torch tensor as a dimension of the Julia array over the same memory."""
dimension(x, d::Int) = d < 0 ? -d : ndims(x) - d

"""
    ConcatTime(d; before = false)

`(t, y) ->` `y` with `t` as one more channel, after (or before) those of dimension `d` (counted as torch does).
"""
struct ConcatTime <: AbstractLuxLayer
    d::Int
    before::Bool
end
ConcatTime(d; before = false) = ConcatTime(d, before)
function (l::ConcatTime)((t, y), ps, st)
    d = dimension(y, l.d)
    time = eltype(y)(t) .* one.(selectdim(y, d, 1:1))
    return cat((l.before ? (time, y) : (y, time))...; dims = d), st
end

"""
    Augment(n, d)

`n` more channels of zeros in dimension `d` (counted as torch does).
"""
struct Augment <: AbstractLuxLayer
    n::Int
    d::Int
end
(l::Augment)(y, ps, st) = (pad_zeros(y, (0, l.n); dims = dimension(y, l.d)), st)

"""
    TimedChain(layers...; timed)

A field `(t, y) -> dy`: one layer after the other, of which those marked in `timed` take `(t, y)`, the others `y`.
"""
struct TimedChain{timed, L <: NamedTuple} <: AbstractLuxWrapperLayer{:layers}
    layers::L
end
function TimedChain(layers...; timed::Tuple{Vararg{Bool}})
    length(layers) == length(timed) || throw(DimensionMismatch("$(length(layers)) layers, $(length(timed)) marks"))
    named = NamedTuple{ntuple(i -> Symbol(:layer_, i), length(layers))}(layers)
    return TimedChain{timed, typeof(named)}(named)
end
(c::TimedChain{timed})((t, y), ps, st) where {timed} = through(Val(timed), c.layers, t, y, ps, st)

@generated function through(::Val{timed}, layers::NamedTuple{names}, t, y, ps, st) where {timed, names}
    states = [gensym(name) for name in names]
    calls = map(names, timed, states) do name, sees, state
        :((y, $state) = layers.$name($(sees ? :((t, y)) : :y), ps.$name, st.$name))
    end
    return Expr(:block, calls..., :(return y, NamedTuple{$names}(($(states...),))))
end

PyNode.takes_time(::TimedChain) = true

function PyNode.lux_model(source::String, ::Type{T}) where {T}
    scope = Module(:Exported)
    Core.eval(scope, :(const Lux = $Lux; const NNlib = $(Lux.NNlib); const Layers = $(@__MODULE__)))
    Core.eval(scope, :(using .Lux, .NNlib))
    for name in (:Activation, :ConcatTime, :Augment, :TimedChain, :softplus_above, :hard_tanh, :hard_sigmoid,
            :hard_swish, :exp_linear, :continuous_exp_linear, :scaled_exp_linear, :leaky, :soft_shrink, :hard_shrink,
            :above)
        Core.eval(scope, :(const $name = Layers.$name))
    end
    chain = Base.include_string(scope, source, "exported model")
    ps, st = Base.invokelatest(Lux.setup, Xoshiro(0), chain)
    cast = T === Float64 ? f64 : f32
    return chain, ComponentArray{T}(cast(ps)), cast(st)
end

end
