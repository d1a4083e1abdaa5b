module PyNodeSciMLSensitivityExt

using PyNode
using SciMLSensitivity

function PyNode.adjoint(solution, algorithm, sensealg, times, cotangents, rtol, atol, options)
    return adjoint_sensitivities(solution, algorithm; t = times, dgdu_discrete = cotangents, sensealg,
        reltol = rtol, abstol = atol, verbose = PyNode.LOUD, options...)
end

# No workload here: Julia 1.10.8 crashed at loading the images that it makes of an extension with one. The first
# gradient of a process compiles instead.

end
