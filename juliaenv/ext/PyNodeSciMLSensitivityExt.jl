module PyNodeSciMLSensitivityExt

using PyNode
using SciMLSensitivity
using PrecompileTools

function PyNode.adjoint(solution, algorithm, sensealg, times, cotangents, rtol, atol, options)
    return adjoint_sensitivities(solution, algorithm; t = times, dgdu_discrete = cotangents, sensealg,
        reltol = rtol, abstol = atol, verbose = PyNode.LOUD, options...)
end

PyNode.@gradient_workload

end
