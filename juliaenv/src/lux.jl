# Torch models as models of Lux and DiffEqFlux. What needs those packages is in the extensions they load.

"""
    lux_model(source, T) -> (chain, parameters, states)

Evaluate the text of a Lux model; its parameters, one `ComponentArray` of numbers `T`, are to be filled.
"""
function lux_model end

"""
    lux_neural_ode(chain, tspan, algorithm; options...)

The layer `(y0, parameters, states) -> (solution, states)`: `DiffEqFlux.NeuralODE`, or its counterpart with time where
the chain takes `(t, y)`.
"""
function lux_neural_ode end

"""Whether a model takes `(t, y)`."""
takes_time(_) = false

"""The array at a path, names joined by dots: in the states if it starts with `states.`, else in the parameters."""
function lux_node(parameters, states, path::AbstractString)
    names = Symbol.(split(path, '.'))
    names[1] === :states && return foldl(getproperty, names[2:end]; init = states)
    return foldl(getproperty, names; init = parameters)
end

lux_get(parameters, states, path) = Array(lux_node(parameters, states, path))

function lux_put(parameters, states, path, values)
    node = lux_node(parameters, states, path)
    size(node) == size(values) || throw(DimensionMismatch("$path has size $(size(node)), torch $(size(values))"))
    copyto!(node, values)
    return nothing
end

lux_array(values) = Array(values)

lux_call(chain, parameters, states, y) = Array(first(chain(y, parameters, states)))
lux_call(chain, parameters, states, t, y) = Array(first(chain((t, y), parameters, states)))

"""The layer for times and tolerances as Python has them; methods by name."""
function lux_neural_ode(chain, ::Type{T}, times, algorithm, sensealg; rtol, atol, options...) where {T}
    # A time of higher precision than the state's would promote the state.
    t = T.(times)
    object(x) = x isa AbstractString ? named(String(x)) : x
    return lux_neural_ode(chain, (t[1], t[end]), object(algorithm); saveat = t, reltol = T(rtol), abstol = T(atol),
        sensealg = object(sensealg), options...)
end

"""A neural differential equation's states, times last; how the solve ended, and where."""
function lux_trajectory(layer, parameters, states, y0)
    solution, _ = layer(y0, parameters, states)
    return stack(solution.u), string(solution.retcode), Float64(solution.t[end])
end
