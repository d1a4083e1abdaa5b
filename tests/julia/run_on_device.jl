# run_emitted.jl's programs on JLArrays, GPUArrays' reference arrays, where indexing a single element is an error.

using GPUArraysCore, JLArrays

GPUArraysCore.allowscalar(false)

numbers(path, T, n) = (x = Vector{T}(undef, n); open(io -> read!(io, x), path); x)
blank(T, n) = JLArray(fill(T(NaN), n))

function evaluate(folder, m, ::Type{T}, n, k) where {T}
    for i in ("1", "2")
        at(name) = joinpath(folder, name * i)
        t = numbers(at("t"), Float64, 1)[1]
        u, p, a = (JLArray(numbers(at(name), T, size)) for (name, size) in (("u", n), ("p", k), ("a", n)))
        du, da, g, dT = blank(T, n), blank(T, n), blank(T, k), blank(T, n)
        call(name, args...) = Base.invokelatest(getfield(m, name), args...)
        call(:f!, du, u, p, t)
        call(:vjp!, da, a, u, p, t)
        call(:vjp_p!, g, a, u, p, t)
        number = T(call(:vjp_t, a, u, p, t))
        call(:tgrad!, dT, u, p, t)
        results = (Array(du), Array(da), Array(g), T[number], Array(dT))
        open(io -> foreach(x -> write(io, x), results), at("values"), "w")
    end
end

function main(folders)
    for (i, folder) in enumerate(folders)
        began = time()
        try
            kind, n, k = split(read(joinpath(folder, "sizes"), String))
            m = Module(Symbol("Emitted", i))
            Core.eval(m, :(const JLArray = $JLArray))
            Base.include(m, joinpath(folder, "program.jl"))
            evaluate(folder, m, kind == "Float32" ? Float32 : Float64, parse(Int, n), parse(Int, k))
            write(joinpath(folder, "seconds"), string(time() - began))
        catch problem
            write(joinpath(folder, "error"), first(sprint(showerror, problem, catch_backtrace()), 6000))
        end
    end
end

# Numbers of an array's own are fine: that this is refused shows that the test can fail.
refused = try
    JLArray([1.0])[1]
    false
catch
    true
end
refused || error("JLArrays let a single element be indexed")
main(ARGS)
