# One solve.

"""What is to be solved; the layout is known to Python (`SolveCall` in pynode/julia/crossing.py)."""
struct SolveCall
    field::Int64
    algorithm::Int64
    y0::Ptr{Cvoid}
    p::Ptr{Cvoid}
    t0::Float64
    t1::Float64
    times::Ptr{Float64}
    ntimes::Int64
    values::Ptr{Cvoid}
    final::Ptr{Cvoid}
    rtol::Float64
    atol::Float64
    rtols::Ptr{Float64}
    atols::Ptr{Float64}
    stops::Ptr{Float64}
    nstops::Int64
    jumps::Ptr{Float64}
    njumps::Int64
    dt::Float64
    dtmin::Float64
    dtmax::Float64
    maxiters::Int64
    norm_size::Int64
    controller::Int64
    adaptive::Int32
    force_dtmin::Int32
    keep::Int32
    device::Int32
    "Something may be asked of the solution later."
    hold::Int32
    "Python takes the steps one by one: see marching.jl."
    march::Int32
    "The mass matrix, row by row; none for null."
    mass::Ptr{Cvoid}
end

const QUIET = DiffEqBase.DEVerbosity(SciMLLogging.None())

device(number::Integer) = number == 0 ? Val(:cpu) : Val(:cuda)

"""Options that are only there where the user chose: a solver takes their absence for a choice of its own."""
function chosen(options, c, ahead)
    c.dt == 0 || (options = (; options..., dt = copysign(c.dt, ahead)))
    c.controller == 0 || (options = (; options..., controller = HELD[c.controller]))
    return options
end

floats(pointer, n) = n == 0 ? Float64[] : copy(unsafe_wrap(Array, pointer, Int(n)))

"""A number, or one for each channel in the state's own numbers."""
tolerance(::Type{T}, number, ::Ptr, n, ::Val{false}) where {T} = number
tolerance(::Type{T}, number, each::Ptr, n, ::Val{true}) where {T} = T.(unsafe_wrap(Array, each, n))

"""A solve that Python may ask about."""
struct Solved{S, F, A}
    solution::S
    field::F
    algorithm::A
    device::Any
    mass::Any
end

function solve_call(c::SolveCall, reply)
    field = HELD[c.field]
    algorithm = HELD[c.algorithm]
    each = c.rtols != C_NULL || c.atols != C_NULL
    Base.invokelatest(solve_field, field, algorithm, c, reply, Val(each), Val(c.norm_size < field.n), Val(c.keep != 0))
    return nothing
end

function solve_field(field::Field{T, V}, algorithm, c::SolveCall, reply, ::Val{each}, ::Val{partial},
        ::Val{keep}) where {T, V, each, partial, keep}
    place = device(c.device)
    n = field.n
    y0 = copy(device_array(place, T, c.y0, n))
    p = field.np == 0 ? fill!(V(undef, 1), 0) : device_array(place, T, c.p, field.np)
    field.counts.f = field.counts.vjp = field.counts.vjp_p = 0
    times = floats(c.times, c.ntimes)
    mass = mass_at(T, c.mass, n)
    check_mass(mass, algorithm)
    f = odefunction(field, implicit(algorithm), mass)
    problem = ODEProblem{true, SciMLBase.FullSpecialize}(f, y0, (c.t0, c.t1), p)
    rtol = tolerance(T, c.rtol, c.rtols, n, Val(each))
    atol = tolerance(T, c.atol, c.atols, n, Val(each))
    norm = partial ? Ranges([1:Int(c.norm_size)]) : DiffEqBase.ODE_DEFAULT_NORM
    common = (; reltol = rtol, abstol = atol, maxiters = Int(c.maxiters), dtmin = c.dtmin,
        dtmax = min(c.dtmax, abs(c.t1 - c.t0)), force_dtmin = c.force_dtmin != 0, tstops = floats(c.stops, c.nstops),
        d_discontinuities = floats(c.jumps, c.njumps), internalnorm = norm, adaptive = c.adaptive != 0,
        verbose = QUIET)
    more = chosen(common, c, c.t1 - c.t0)
    # Python has checked that the initial state satisfies the algebraic equations.
    mass === nothing || (more = (; more..., initializealg = SciMLBase.NoInit()))
    if c.march != 0
        reply.solution = hold(Marching(init(problem, algorithm; more...), field, algorithm, place, mass))
        return nothing
    end
    stored = sort!(unique!([c.t0; times; c.t1]); rev = c.t1 < c.t0)
    solution = keep ? solve(problem, algorithm; more...) :
               solve(problem, algorithm; more..., saveat = stored, dense = false)
    ended!(reply, solution, field)
    ahead = sign(c.t1 - c.t0)
    reached = findlast(t -> (t - reply.t) * ahead <= 0, times)
    reply.saved = something(reached, 0)
    values = device_array(place, T, c.values, n * length(times))
    y = similar(y0)
    for i in 1:(reply.saved)
        if keep
            at!(y, solution, times[i])
        else
            copyto!(y, solution.u[findfirst(==(times[i]), solution.t)])
        end
        copyto!(values, (i - 1) * n + 1, y, 1, n)
    end
    final = device_array(place, T, c.final, n)
    reply.retcode == SUCCESS ? copyto!(final, solution.u[end]) :
    (keep ? at!(final, solution, reply.t) : copyto!(final, solution.u[end]))
    synchronize(place)
    c.hold == 0 || (reply.solution = hold(Solved(for_adjoints(solution, mass, field), field, algorithm, place, mass)))
    return nothing
end

"""How a solve ended, where, and what it took."""
function ended!(reply, solution, field)
    reply.retcode = code(solution.retcode)
    reply.t = solution.t[end]
    count_work!(reply, field)
    reply.accepted, reply.rejected = solution.stats.naccept, solution.stats.nreject
    reply.steps = length(solution.t)
    reply.retcode == SUCCESS && return nothing
    y0, t0 = solution.prob.u0, solution.prob.tspan[1]
    length(solution.t) == 1 && !all(isfinite, solution.u[1]) && (reply.retcode = INITIAL)
    rate = similar(y0)
    field.f(rate, y0, solution.prob.p, t0)
    isfinite(sum(rate)) || (reply.retcode = INITIAL)
    reply.message = "Julia's retcode is $(solution.retcode)"
    # What is behind the last step that ended well is not known.
    last = findlast(u -> isfinite(sum(u)), solution.u)
    last === nothing || (reply.t = solution.t[last])
    return nothing
end

"""The state at `t`, exactly what was stored where a step ended."""
function at!(y, solution, t)
    solution(y, t)
    return nothing
end

function count_work!(reply, field)
    reply.nf, reply.nvjp, reply.nvjp_p = field.counts.f, field.counts.vjp, field.counts.vjp_p
    return nothing
end

"""The state, or its derivative, at `m` times into `values` (n, m)."""
function evaluate_call(number, times, m, derivative, values, reply)
    solved = HELD[Int(number)]
    Base.invokelatest(evaluate_solved, solved, floats(times, m), derivative != 0, values)
    return nothing
end

function evaluate_solved(solved, times, derivative::Bool, pointer)
    solution = solution_of(solved)
    y = similar(solution.u[1])
    n = length(y)
    values = device_array(solved.device, eltype(y), pointer, n * length(times))
    for (i, t) in enumerate(times)
        derivative ? solution(y, t, Val{1}) : solution(y, t)
        copyto!(values, (i - 1) * n + 1, y, 1, n)
    end
    synchronize(solved.device)
    return nothing
end

"""The ends of the steps and the states there."""
function steps_call(number, times, values, reply)
    solved = HELD[Int(number)]
    Base.invokelatest(steps_solved, solved, times, values)
    return nothing
end

function steps_solved(solved::Solved, times, pointer)
    solution = solved.solution
    n = length(solution.u[1])
    values = device_array(solved.device, eltype(solution.u[1]), pointer, n * length(solution.t))
    copyto!(unsafe_wrap(Array, times, length(solution.t)), solution.t)
    for (i, u) in enumerate(solution.u)
        copyto!(values, (i - 1) * n + 1, u, 1, n)
    end
    synchronize(solved.device)
    return nothing
end
