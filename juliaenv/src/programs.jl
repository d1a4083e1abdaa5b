# Models that came as text.

"""A program's module, and the arrays that hold the values it does not differentiate."""
struct Program
    code::Module
    constants::Vector{Any}
end

"""
    program(Val(:cpu), T, text, n, np) -> Field

Evaluate an emitted program in a module of its own and make its functions a field.
"""
function program(device::Val, ::Type{T}, text::String, n::Int, np::Int) where {T}
    code = Module(gensym(:Emitted))
    Core.eval(code, :(using Base))
    name_arrays!(code, device)
    Base.include_string(code, text, "emitted program")
    V = vector_type(device, T)
    f, vjp, vjp_p, tgrad = (name -> Base.invokelatest(getglobal, code, name)).((:f!, :vjp!, :vjp_p!, :tgrad!))
    constants = isdefined(code, :constants) ? collect(Any, getglobal(code, :constants)) : Any[]
    return Base.invokelatest(() -> Field{T, V}(f, vjp, vjp_p, tgrad, n, np, Program(code, constants)))
end

"""Copy the values at `pointer` into the program's constant number `i` (from 0)."""
function refresh!(device::Val, field::Field, i::Integer, pointer::Ptr{Cvoid})
    array = field.own.constants[i + 1]
    copyto!(vec(array), device_array(device, eltype(array), pointer, length(array)))
    return nothing
end
