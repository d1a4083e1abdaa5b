# Vectors of torch as vectors of Julia, and what outlives a crossing.

"""
    device_array(Val(:cpu), T, pointer, n)

The `n` numbers of type `T` at `pointer`, which Python keeps alive, as a vector without a copy. `Val(:cuda)` is in the
CUDA extension.
"""
device_array(::Val{:cpu}, ::Type{T}, pointer::Ptr, n::Integer) where {T} = unsafe_wrap(Array, Ptr{T}(pointer), Int(n))
device_array(device::Val, ::Type, ::Ptr, ::Integer) =
    throw(Refused("this Julia cannot take arrays of the device $(typeof(device).parameters[1])"))

"""Wait for the device's work."""
synchronize(::Val{:cpu}) = nothing

"""The vector type of a device."""
vector_type(::Val{:cpu}, ::Type{T}) where {T} = Vector{T}

"""Make the array type that programs for a device name known in their module."""
name_arrays!(::Module, ::Val{:cpu}) = nothing

"""What Python holds by number."""
const HELD = Dict{Int, Any}()
const LAST = Ref(0)

hold(x) = (LAST[] += 1; HELD[LAST[]] = x; LAST[])
release(number::Integer) = (delete!(HELD, Int(number)); nothing)
