# Many small systems at once, each solved by one thread of a kernel.

"""What is to be solved; the layout is known to Python (`EnsembleCall` in pynode/julia/ensemble.py)."""
struct EnsembleCall
    text::Ptr{UInt8} # the program: `f(u, p, t)` returning a tuple
    text_length::Int64
    algorithm::Ptr{UInt8}
    algorithm_length::Int64
    y0::Ptr{Cvoid} # (n, rows), in this machine's memory
    own::Ptr{Cvoid} # (nown, rows), in this machine's memory
    shared::Ptr{Cvoid} # (nshared,), in this machine's memory
    times::Ptr{Float64}
    values::Ptr{Cvoid} # (n, ntimes, rows), in the device's memory
    n::Int64
    rows::Int64
    nown::Int64
    nshared::Int64
    ntimes::Int64
    rtol::Float64
    atol::Float64
    dt::Float64
    adaptive::Int32
    double::Int32
    device::Int32
end

"""
    ensemble!(values, Val(n), Val(np), f, y0, p, times, algorithm; adaptive, rtol, atol, dt, backend) -> row

Solve all columns of `y0` (n, rows) with the parameters in the columns of `p` (np, rows) at the increasing `times` into
`values`, a vector on the backend's device. The result is the number of the first row that did not arrive, 0, or -1
where some row's step became too small, which ends the solves of all.
"""
function ensemble! end

"""The KernelAbstractions backend of a device."""
function kernel_backend end

"""
Programs of ensembles by their text: each is compiled with its kernel once. The modules are kept: a function does not
keep its module alive, and is gone with it at a garbage collection.
"""
const ROW_PROGRAMS = Dict{String, Module}()

function row_field(text::String)
    code = get!(ROW_PROGRAMS, text) do
        fresh = Module(gensym(:Row))
        Base.include_string(fresh, text, "emitted program")
        fresh
    end
    return Base.invokelatest(getglobal, code, :f)
end

"""`f` backwards in time: a kernel solves forwards only."""
struct Mirrored{F}
    f::F
end
(m::Mirrored)(u, p, s) = map(-, m.f(u, p, -s))

host(::Type{T}, pointer, rows, columns) where {T} =
    columns * rows == 0 ? Matrix{T}(undef, rows, columns) : unsafe_wrap(Array, Ptr{T}(pointer), (Int(rows), Int(columns)))

function ensemble_call(c::EnsembleCall, reply)
    T = c.double != 0 ? Float64 : Float32
    f = row_field(unsafe_string(c.text, c.text_length))
    times = T.(floats(c.times, c.ntimes))
    if times[end] < times[1]
        f, times = Mirrored(f), -times
    end
    shared = host(T, c.shared, c.nshared, 1)
    p = vcat(repeat(shared, 1, Int(c.rows)), host(T, c.own, c.nown, c.rows))
    place = device(c.device)
    values = device_array(place, T, c.values, c.n * c.ntimes * c.rows)
    algorithm = Symbol(unsafe_string(c.algorithm, c.algorithm_length))
    backend = Base.invokelatest(kernel_backend, place)
    row = Base.invokelatest(ensemble!, values, Val(Int(c.n)), Val(size(p, 1)), f, host(T, c.y0, c.n, c.rows), p, times,
        Val(algorithm); adaptive = c.adaptive != 0, rtol = T(c.rtol), atol = T(c.atol), dt = T(c.dt), backend)
    synchronize(place)
    reply.saved = row
    return nothing
end
