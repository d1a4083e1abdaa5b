# Evaluates emitted programs. Arguments: folders with program.jl, "sizes" (the number type, n, k) and the raw numbers
# t1 u1 p1 a1 t2 u2 p2 a2; each receives values1 and values2 (f, vjp, vjp_p, vjp_t, tgrad), and "seconds"; or "error".

using LinearAlgebra

numbers(path, T, n) = (x = Vector{T}(undef, n); open(io -> read!(io, x), path); x)

struct Point{T}
    t::Float64
    u::Vector{T}
    p::Vector{T}
    a::Vector{T}
end

Base.copy(x::Point) = Point(x.t, copy(x.u), copy(x.p), copy(x.a))
same(x::Point, y::Point) = isequal(x.u, y.u) && isequal(x.p, y.p) && isequal(x.a, y.a)

# Results start as NaN: what a function leaves unwritten shows.
blank(x::Vector{T}, n = length(x)) where {T} = fill(T(NaN), n)

returns_nothing(result, name) = result === nothing || error("$name returned a $(typeof(result)), not nothing")

const FUNCTIONS = (
    function (m, x)
        du = blank(x.u)
        returns_nothing(Base.invokelatest(getfield(m, :f!), du, x.u, x.p, x.t), "f!")
        du
    end,
    function (m, x)
        da = blank(x.u)
        returns_nothing(Base.invokelatest(getfield(m, :vjp!), da, x.a, x.u, x.p, x.t), "vjp!")
        da
    end,
    function (m, x)
        g = blank(x.p)
        returns_nothing(Base.invokelatest(getfield(m, :vjp_p!), g, x.a, x.u, x.p, x.t), "vjp_p!")
        g
    end,
    function (m, x::Point{T}) where {T}
        number = Base.invokelatest(getfield(m, :vjp_t), x.a, x.u, x.p, x.t)
        number isa Real || error("vjp_t returned a $(typeof(number)), not a number")
        T[number]
    end,
    function (m, x)
        dT = blank(x.u)
        returns_nothing(Base.invokelatest(getfield(m, :tgrad!), dT, x.u, x.p, x.t), "tgrad!")
        dT
    end,
)

const NAMES = ("f!", "vjp!", "vjp_p!", "vjp_t", "tgrad!")

function evaluate(folder, m, ::Type{T}, n, k) where {T}
    points = map(("1", "2")) do i
        at(name) = joinpath(folder, name * i)
        Point{T}(numbers(at("t"), Float64, 1)[1], numbers(at("u"), T, n), numbers(at("p"), T, k), numbers(at("a"), T, n))
    end
    kept = map(copy, points)
    # The other way round at the second point, and in yet another order at the end: no function may count on what
    # another one, or an earlier call, left behind.
    first_values = [run(m, points[1]) for run in FUNCTIONS]
    second_values = reverse([run(m, points[2]) for run in reverse(FUNCTIONS)])
    unchanged() = all(map(same, points, kept)) || error("an input was changed")
    unchanged()
    for i in (2, 3, 1, 5, 4)
        isequal(FUNCTIONS[i](m, points[1]), first_values[i]) || error("$(NAMES[i]) gave other values when repeated")
    end
    unchanged()
    for (i, values) in enumerate((first_values, second_values))
        open(io -> foreach(x -> write(io, x), values), joinpath(folder, "values$i"), "w")
    end
end

function main(folders)
    BLAS.set_num_threads(1)
    for (i, folder) in enumerate(folders)
        began = time()
        try
            kind, n, k = split(read(joinpath(folder, "sizes"), String))
            m = Module(Symbol("Emitted", i))
            Base.include(m, joinpath(folder, "program.jl"))
            T = kind == "Float32" ? Float32 : Float64
            evaluate(folder, m, T, parse(Int, n), parse(Int, k))
            write(joinpath(folder, "seconds"), string(time() - began))
        catch problem
            write(joinpath(folder, "error"), first(sprint(showerror, problem, catch_backtrace()), 6000))
        end
    end
end

main(ARGS)
