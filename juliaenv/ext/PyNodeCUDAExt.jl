"""
CUDA tensors as `CuArray`s over the same memory. torch and CUDA.jl share each device's primary context.

Not tried on a GPU: there was none where this was written; the calls were read against CUDA.jl 5.4 to 6.2.
"""
module PyNodeCUDAExt

using CUDA
using PyNode

# One concrete type for all: what CUDA.jl allocates, so that arrays of either side fit the same field.
PyNode.vector_type(::Val{:cuda}, ::Type{T}) where {T} = typeof(CuVector{T}(undef, 0))

"""
    device_array(Val(:cuda), T, pointer, n)

The `n` numbers of type `T` in torch's device memory at `pointer`. Python has waited for torch's stream.
"""
PyNode.device_array(device::Val{:cuda}, ::Type{T}, pointer::Ptr, n::Integer) where {T} =
    unsafe_wrap(PyNode.vector_type(device, T), CuPtr{T}(UInt(pointer)), Int(n))

PyNode.synchronize(::Val{:cuda}) = CUDA.synchronize()

PyNode.name_arrays!(code::Module, ::Val{:cuda}) = Core.eval(code, :(const CuArray = $CuArray))

PyNode.kernel_backend(::Val{:cuda}) = CUDABackend()

end
