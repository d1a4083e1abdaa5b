# One gradient: the adjoint equation integrated backward by SciMLSensitivity, which is loaded when first asked for.

"""What is to be pulled back; the layout is known to Python (`PullBackCall` in pynode/julia/crossing.py)."""
struct PullBackCall
    solution::Int64
    sensealg::Int64
    algorithm::Int64
    times::Ptr{Float64}
    ntimes::Int64
    cotangents::Ptr{Cvoid}
    slopes::Ptr{Cvoid}
    dy0::Ptr{Cvoid}
    dp::Ptr{Cvoid}
    rtol::Float64
    atol::Float64
    rtols::Ptr{Float64}
    atols::Ptr{Float64}
    ntols::Int64
    stops::Ptr{Float64}
    nstops::Int64
    jumps::Ptr{Float64}
    njumps::Int64
    dt::Float64
    dtmin::Float64
    dtmax::Float64
    maxiters::Int64
    "Ranges (first, last) that count in the error norm; none for all."
    ranges::Ptr{Int64}
    nranges::Int64
    controller::Int64
    adaptive::Int32
    force_dtmin::Int32
    joint::Int32
    strict::Int32
    "Channels that the reconstruction check looks at, zero for none, and the distance that is noise."
    checked::Int64
    noise::Float64
end

"""The derivative of the loss by the state at saved time number `i`."""
struct Cotangents{V}
    rows::Vector{V}
end
(c::Cotangents)(out, u, p, t, i) = (copyto!(out, c.rows[i]); nothing)

"""Warnings of the reverse solve that mean a wrong gradient; nothing else is said."""
const LOUD = DiffEqBase.DEVerbosity(; preset = SciMLLogging.None(), max_iters = SciMLLogging.WarnLevel(),
    dt_NaN = SciMLLogging.WarnLevel(), init_NaN = SciMLLogging.WarnLevel(),
    dt_min_unstable = SciMLLogging.WarnLevel(), instability = SciMLLogging.WarnLevel(),
    unlimited_dt = SciMLLogging.WarnLevel())

function pull_back_call(c::PullBackCall, reply)
    solved = HELD[c.solution]
    algorithm = c.algorithm == 0 ? solved.algorithm : HELD[c.algorithm]
    Base.invokelatest(pull_back_solved, solved, HELD[c.sensealg], reversed(algorithm), c, reply, Val(c.rtols != C_NULL),
        Val(c.nranges > 0))
    return nothing
end

"""The algorithm for an adjoint: what differentiates fields by dual numbers would meet Python's or emitted code."""
function reversed(algorithm)
    implicit(algorithm) || return algorithm
    algorithm isa OrdinaryDiffEqCore.CompositeAlgorithm && return algorithm
    return :autodiff in propertynames(algorithm) ? SciMLBase.remake(algorithm; autodiff = AutoFiniteDiff()) : algorithm
end

function pull_back_solved(solved::Solved, sensealg, algorithm, c::PullBackCall, reply, ::Val{each},
        ::Val{ranged}) where {each, ranged}
    solution, field, place = solved.solution, solved.field, solved.device
    T, V = eltype(field.a), typeof(field.a)
    n, m = field.n, Int(c.ntimes)
    times = floats(c.times, m)
    p = solution.prob.p
    field.counts.f = field.counts.vjp = field.counts.vjp_p = 0
    join!(field, c.joint != 0)
    field.strict = c.strict != 0
    if c.checked > 0
        order = sortperm(solution.t)
        field.anchors = Anchors(solution.t[order], solution.u[order], Int(c.checked))
    end
    t0, t1 = solution.prob.tspan
    all = device_array(place, T, c.cotangents, n * m)
    rows, stops = V[], Float64[]
    start = fill!(similar(field.a), 0) # at the initial time nothing has been integrated yet
    direct = fill!(similar(field.g), 0)
    for i in 1:m
        row = all[((i - 1) * n + 1):(i * n)]
        times[i] == t0 && (start .+= row; continue)
        iszero(row) && continue # the reverse solve would stop there for nothing
        reduce!(row, direct, solved.mass, field, solution, times[i])
        push!(rows, row)
        push!(stops, times[i])
    end
    if c.slopes != C_NULL
        slopes = device_array(place, T, c.slopes, n * (m + 1))
        y, slope = similar(field.a), similar(field.a)
        for i in 1:(m + 1)
            t = i <= m ? times[i] : solution.t[1]
            solution(y, t)
            rate!(slope, solved.mass, field, y, p, t)
            copyto!(slopes, (i - 1) * n + 1, slope, 1, n)
        end
    end
    rtol = each ? T.(unsafe_wrap(Array, c.rtols, c.ntols)) : c.rtol
    atol = each ? T.(unsafe_wrap(Array, c.atols, c.ntols)) : c.atol
    norm = DiffEqBase.ODE_DEFAULT_NORM
    if ranged
        bounds = unsafe_wrap(Array, c.ranges, 2 * c.nranges)
        norm = Ranges([(bounds[2i - 1]:bounds[2i]) for i in 1:(c.nranges)])
    end
    common = (; maxiters = Int(c.maxiters), dtmin = c.dtmin, dtmax = min(c.dtmax, abs(t1 - t0)),
        force_dtmin = c.force_dtmin != 0, d_discontinuities = floats(c.jumps, c.njumps), internalnorm = norm,
        adaptive = c.adaptive != 0)
    more = chosen(common, c, t0 - t1)
    more = c.nstops == 0 ? more : (; more..., tstops = floats(c.stops, c.nstops))
    out = device_array(place, T, c.dy0, n)
    integral = field.np == 0 ? V(undef, 0) : device_array(place, T, c.dp, field.np)
    try
        if isempty(rows)
            fill!(out, 0)
            fill!(integral, 0)
        else
            dy0, dp = with_logger(Strict()) do
                adjoint(solution, algorithm, sensealg, stops, Cotangents(rows), rtol, atol, more)
            end
            copyto!(out, dy0)
            field.np == 0 || (copyto!(integral, vec(dp)); integral .+= direct)
        end
        out .+= start
        reply.finite = isfinite(sum(out)) && isfinite(sum(integral))
    finally
        field.anchors === nothing || (reply.mismatch = mismatch(field.anchors, c.noise))
        field.anchors = nothing
        field.strict = false
        join!(field, false)
        count_work!(reply, field)
    end
    synchronize(place)
    return nothing
end

"""`adjoint_sensitivities`, in the extension for SciMLSensitivity."""
function adjoint end
