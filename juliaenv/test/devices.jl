# The whole crossing on a device's arrays, JLArrays standing in for CUDA: solves and gradients, where indexing a single
# element is an error. `julia --project=... juliaenv/test/devices.jl`, with JLArrays and SciMLSensitivity in the project.

using GPUArrays, GPUArraysCore, JLArrays, PyNode, SciMLSensitivity, Test

GPUArraysCore.allowscalar(false)

# Memory of torch's, as JLArrays over it: what PyNodeCUDAExt does for CUDA.
PyNode.vector_type(::Val{:cuda}, ::Type{T}) where {T} = JLArray{T, 1}
function PyNode.device_array(::Val{:cuda}, ::Type{T}, pointer::Ptr, n::Integer) where {T}
    bytes = unsafe_wrap(Array, Ptr{UInt8}(pointer), Int(n) * sizeof(T))
    return JLArray{T, 1}(GPUArrays.DataRef(identity, bytes), (Int(n),))
end
PyNode.synchronize(::Val{:cuda}) = nothing
PyNode.name_arrays!(code::Module, ::Val{:cuda}) = Core.eval(code, :(const CuArray = $JLArray))

include("crossing.jl")

on_device(text, T) = "const T = $T\n" * text

# An implicit method is missing: JLArrays has no factorisation to solve its linear systems with.
@testset "$T Tsit5 $adjoint" for (T, adjoint) in [(Float32, x) for x in ADJOINTS] ∪ [(Float64, "GaussAdjoint")]
    algorithm = "Tsit5()"
    sensealg = sensitivity(adjoint)
    host = gradient(T, in_memory(TEXT, T), 0, algorithm, sensealg)
    device = gradient(T, on_device(TEXT, T), 1, algorithm, sensealg)
    # The same steps but for rounding, which may move a step's end by its share of the tolerance.
    for (x, y) in zip(host, device)
        @test maximum(abs, x - y) <= 1.0e-4
    end
    @test maximum(abs, host[3]) > 1.0e-2
end
