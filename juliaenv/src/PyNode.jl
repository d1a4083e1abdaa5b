"""
The Julia half of pynode: torch models solved by OrdinaryDiffEq and differentiated by SciMLSensitivity.

Python hands over programs (text emitted from a torch model, or pointers to Python callbacks) and raw pointers to
vectors; everything crosses through the C functions of `crossing.jl`. Nothing here knows torch or Python objects.
"""
module PyNode

using ADTypes: AutoFiniteDiff
using FunctionWrappers: FunctionWrapper
using LinearAlgebra
using Logging
using OrdinaryDiffEqCore
using OrdinaryDiffEqLowOrderRK
using OrdinaryDiffEqTsit5
using PrecompileTools
using SciMLBase
import DiffEqBase
import SciMLLogging

include("messages.jl")
include("interrupts.jl")
include("memory.jl")
include("fields.jl")
include("masses.jl")
include("programs.jl")
include("callbacks.jl")
include("algorithms.jl")
include("norms.jl")
include("solving.jl")
include("marching.jl")
include("pulling_back.jl")
include("ensembles.jl")
include("crossing.jl")
include("lux.jl")
include("workload.jl")

end
