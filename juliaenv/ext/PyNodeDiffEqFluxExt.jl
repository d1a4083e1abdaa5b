# Neural differential equations of DiffEqFlux, and the ones with time that it does not have.
module PyNodeDiffEqFluxExt

using DiffEqFlux
using DiffEqFlux: LuxCore, SciMLBase
using PyNode: PyNode

"""
`DiffEqFlux.NeuralODE` for a model of time and state: `model((t, y), parameters, states)`.
"""
struct TimedNeuralODE{M <: LuxCore.AbstractLuxLayer, S, A, K} <: DiffEqFlux.NeuralDELayer
    model::M
    tspan::S
    args::A
    kwargs::K
end

function (n::TimedNeuralODE)(y0, ps, st)
    model = DiffEqFlux.StatefulLuxLayer{true}(n.model, nothing, st)
    field(y, p, t) = model((t, y), p)
    problem = SciMLBase.ODEProblem{false}(SciMLBase.ODEFunction{false}(field), y0, n.tspan, ps)
    solution = SciMLBase.solve(
        problem, n.args...; sensealg = InterpolatingAdjoint(; autojacvec = ZygoteVJP()), n.kwargs...
    )
    return solution, model.st
end

function PyNode.lux_neural_ode(chain::LuxCore.AbstractLuxLayer, tspan::Tuple, algorithm; options...)
    PyNode.takes_time(chain) && return TimedNeuralODE(chain, tspan, (algorithm,), options)
    return NeuralODE(chain, tspan, algorithm; options...)
end

end
