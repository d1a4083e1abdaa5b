# Solves that Python follows step by step, to look for events on their dense output.

"""A solve under way."""
struct Marching{I, F, A}
    integrator::I
    field::F
    algorithm::A
    device::Any
    mass::Any
end

"""What has been solved so far."""
solution_of(solved) = solved.solution
solution_of(marching::Marching) = marching.integrator.sol

"""Take one step, rejected attempts included. `saved` tells that it was the last one, `t` where it ended."""
function advance_call(number, reply)
    marching = HELD[Int(number)]
    Base.invokelatest(advance!, marching.integrator, reply)
    return nothing
end

function advance!(integrator, reply)
    retcode = step!(integrator)
    going = retcode in (ReturnCode.Default, ReturnCode.Success)
    reply.retcode = going ? SUCCESS : code(retcode)
    reply.t = integrator.t
    reply.saved = !going || isempty(integrator.opts.tstops)
    return nothing
end

"""End the solve after its last step. Its number is that of the solution from now on."""
function finish_call(number, reply)
    marching = HELD[Int(number)]
    HELD[Int(number)] = Base.invokelatest(finished, marching, reply)
    return nothing
end

function finished(marching::Marching, reply)
    integrator, field = marching.integrator, marching.field
    if integrator.sol.retcode == ReturnCode.Default
        terminate!(integrator)
        solve!(integrator) # no step is left
    end
    solution = integrator.sol
    solution.retcode == ReturnCode.Terminated && (solution = over_steps(solution))
    ended!(reply, solution, field)
    return Solved(for_adjoints(solution, marching.mass, field), field, marching.algorithm, marching.device, marching.mass)
end
