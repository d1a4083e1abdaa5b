# Error norms that leave channels out of step control.

"""
The largest root mean square over the given ranges of a vector; channels in none of them (running costs, parameter
integrals) do not count. Of a number, its size.
"""
struct Ranges
    ranges::Vector{UnitRange{Int}}
end
(::Ranges)(x::Number, t) = abs(x)
function (norm::Ranges)(x::AbstractArray, t)
    largest = zero(real(eltype(x)))
    for range in norm.ranges
        isempty(range) && continue
        part = view(x, range)
        largest = max(largest, sqrt(sum(abs2, part) / length(range)))
    end
    return largest
end
function (norm::Ranges)(f::F, x::AbstractArray, t) where {F}
    largest = zero(real(eltype(x)))
    for range in norm.ranges
        isempty(range) && continue
        part = view(x, range)
        largest = max(largest, sqrt(sum(abs2 ∘ f, part) / length(range)))
    end
    return largest
end
(::Ranges)(f::F, x::Number, t) where {F} = abs(f(x))
