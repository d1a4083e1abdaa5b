# The C functions that Python calls. What they take is read here and nowhere else.

"""How a crossing ended; `Reply` in pynode/julia/crossing.py."""
mutable struct Reply
    status::Int32
    retcode::Int32
    t::Float64
    solution::Int64
    nf::Int64
    nvjp::Int64
    nvjp_p::Int64
    accepted::Int64
    rejected::Int64
    saved::Int64
    steps::Int64
    mismatch::Float64
    finite::Int64
    message::String
end
Reply() = Reply(DONE, SUCCESS, NaN, 0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0, "")

function finish!(reply::Reply, status::Int32, message::String)
    reply.status = status
    isempty(message) || (reply.message = message)
    return nothing
end

struct RawReply
    status::Int32
    retcode::Int32
    t::Float64
    solution::Int64
    nf::Int64
    nvjp::Int64
    nvjp_p::Int64
    accepted::Int64
    rejected::Int64
    saved::Int64
    steps::Int64
    mismatch::Float64
    finite::Int64
    length::Int64
    message::Ptr{UInt8}
    capacity::Int64
end

RawReply(r::Reply, length, message, capacity) = RawReply(r.status, r.retcode, r.t, r.solution, r.nf, r.nvjp, r.nvjp_p,
    r.accepted, r.rejected, r.saved, r.steps, r.mismatch, r.finite, length, message, capacity)

"""Write a reply where Python reads it, the message cut to the room there is."""
function answer(pointer::Ptr{RawReply}, reply::Reply)
    raw = unsafe_load(pointer)
    text = codeunits(reply.message)
    used = min(length(text), Int(raw.capacity))
    GC.@preserve text unsafe_copyto!(raw.message, pointer_from(text), used)
    unsafe_store!(pointer, RawReply(reply, used, raw.message, raw.capacity))
    return nothing
end
pointer_from(text) = pointer(text)

"""Let go of what Python no longer needs."""
drop(number::Int64)::Cvoid = release(number)

function cross_solve(call::Ptr{SolveCall}, raw::Ptr{RawReply})::Cvoid
    reply = Reply()
    guarded(() -> solve_call(unsafe_load(call), reply), reply)
    answer(raw, reply)
    return nothing
end

function cross_pull_back(call::Ptr{PullBackCall}, raw::Ptr{RawReply})::Cvoid
    reply = Reply()
    guarded(() -> pull_back_call(unsafe_load(call), reply), reply)
    answer(raw, reply)
    return nothing
end

function cross_evaluate(number::Int64, times::Ptr{Float64}, m::Int64, derivative::Int32, values::Ptr{Cvoid},
        raw::Ptr{RawReply})::Cvoid
    reply = Reply()
    guarded(() -> evaluate_call(number, times, m, derivative, values, reply), reply)
    answer(raw, reply)
    return nothing
end

function cross_advance(number::Int64, raw::Ptr{RawReply})::Cvoid
    reply = Reply()
    guarded(() -> advance_call(number, reply), reply)
    answer(raw, reply)
    return nothing
end

function cross_finish(number::Int64, raw::Ptr{RawReply})::Cvoid
    reply = Reply()
    guarded(() -> finish_call(number, reply), reply)
    answer(raw, reply)
    return nothing
end

function cross_steps(number::Int64, times::Ptr{Float64}, values::Ptr{Cvoid}, raw::Ptr{RawReply})::Cvoid
    reply = Reply()
    guarded(() -> steps_call(number, times, values, reply), reply)
    answer(raw, reply)
    return nothing
end

"""A program's text becomes a field; `solution` is its number, `saved` the number of its constant arrays."""
function cross_program(text::Ptr{UInt8}, length::Int64, double::Int32, n::Int64, np::Int64, where::Int32,
        raw::Ptr{RawReply})::Cvoid
    reply = Reply()
    guarded(reply) do
        T = double != 0 ? Float64 : Float32
        field = Base.invokelatest(program, device(where), T, unsafe_string(text, length), Int(n), Int(np))
        reply.solution = hold(field)
        reply.saved = Base.length(field.own.constants)
    end
    answer(raw, reply)
    return nothing
end

function cross_constant(number::Int64, i::Int64, pointer::Ptr{Cvoid}, where::Int32, raw::Ptr{RawReply})::Cvoid
    reply = Reply()
    guarded(() -> Base.invokelatest(refresh!, device(where), HELD[Int(number)], i, pointer), reply)
    answer(raw, reply)
    return nothing
end

function cross_callback(pointers::Ptr{Ptr{Cvoid}}, double::Int32, n::Int64, np::Int64, raw::Ptr{RawReply})::Cvoid
    reply = Reply()
    guarded(reply) do
        all = unsafe_wrap(Array, pointers, 9)
        T = double != 0 ? Float64 : Float32
        reply.solution = hold(Base.invokelatest(callback_field, T, (all[1], all[2], all[3]),
            (all[4], all[5], all[6], all[7], all[8], all[9]), Int(n), Int(np)))
    end
    answer(raw, reply)
    return nothing
end

"""An expression becomes an algorithm, controller or sensitivity algorithm."""
function cross_named(text::Ptr{UInt8}, length::Int64, raw::Ptr{RawReply})::Cvoid
    reply = Reply()
    guarded(() -> (reply.solution = hold(named(unsafe_string(text, length)))), reply)
    answer(raw, reply)
    return nothing
end

function cross_ensemble(call::Ptr{EnsembleCall}, raw::Ptr{RawReply})::Cvoid
    reply = Reply()
    guarded(() -> ensemble_call(unsafe_load(call), reply), reply)
    answer(raw, reply)
    return nothing
end

"""Evaluate a field's functions once: which = 0 f, 1 vjp, 2 vjp_p, 3 tgrad."""
function cross_field(number::Int64, which::Int32, out::Ptr{Cvoid}, λ::Ptr{Cvoid}, u::Ptr{Cvoid}, p::Ptr{Cvoid},
        t::Float64, where::Int32, raw::Ptr{RawReply})::Cvoid
    reply = Reply()
    guarded(() -> Base.invokelatest(field_once, HELD[Int(number)], which, out, λ, u, p, t, device(where)), reply)
    answer(raw, reply)
    return nothing
end

function field_once(field::Field{T, V}, which, out, λ, u, p, t, place) where {T, V}
    n, np = field.n, field.np
    u = device_array(place, T, u, n)
    p = np == 0 ? fill!(V(undef, 1), 0) : device_array(place, T, p, np)
    which == 0 && field.f(device_array(place, T, out, n), u, p, t)
    which == 1 && field.vjp(device_array(place, T, out, n), device_array(place, T, λ, n), u, p, t)
    which == 2 && field.vjp_p(device_array(place, T, out, np), device_array(place, T, λ, n), u, p, t)
    which == 3 && field.tgrad(device_array(place, T, out, n), u, p, t)
    synchronize(place)
    return nothing
end

"""Addresses of the functions above, in the order that Python knows."""
function pointers()
    return (
        solve = @cfunction(cross_solve, Cvoid, (Ptr{SolveCall}, Ptr{RawReply})),
        pull_back = @cfunction(cross_pull_back, Cvoid, (Ptr{PullBackCall}, Ptr{RawReply})),
        evaluate = @cfunction(cross_evaluate, Cvoid, (Int64, Ptr{Float64}, Int64, Int32, Ptr{Cvoid}, Ptr{RawReply})),
        advance = @cfunction(cross_advance, Cvoid, (Int64, Ptr{RawReply})),
        finish = @cfunction(cross_finish, Cvoid, (Int64, Ptr{RawReply})),
        steps = @cfunction(cross_steps, Cvoid, (Int64, Ptr{Float64}, Ptr{Cvoid}, Ptr{RawReply})),
        program = @cfunction(cross_program, Cvoid, (Ptr{UInt8}, Int64, Int32, Int64, Int64, Int32, Ptr{RawReply})),
        constant = @cfunction(cross_constant, Cvoid, (Int64, Int64, Ptr{Cvoid}, Int32, Ptr{RawReply})),
        callback = @cfunction(cross_callback, Cvoid, (Ptr{Ptr{Cvoid}}, Int32, Int64, Int64, Ptr{RawReply})),
        named = @cfunction(cross_named, Cvoid, (Ptr{UInt8}, Int64, Ptr{RawReply})),
        field = @cfunction(cross_field, Cvoid, (Int64, Int32, Ptr{Cvoid}, Ptr{Cvoid}, Ptr{Cvoid}, Ptr{Cvoid}, Float64,
            Int32, Ptr{RawReply})),
        ensemble = @cfunction(cross_ensemble, Cvoid, (Ptr{EnsembleCall}, Ptr{RawReply})),
        drop = @cfunction(drop, Cvoid, (Int64,)),
    )
end

"""Addresses as text, `name=number` apart by spaces; Python's signal functions are handed over at the same time."""
function connect(ensure::Integer, check::Integer, clear::Integer, release::Integer)
    SIGNALS.ensure, SIGNALS.check = Ptr{Cvoid}(UInt(ensure)), Ptr{Cvoid}(UInt(check))
    SIGNALS.clear, SIGNALS.release = Ptr{Cvoid}(UInt(clear)), Ptr{Cvoid}(UInt(release))
    SIGNALS.next = 0
    return join(("$name=$(UInt(address))" for (name, address) in pairs(pointers())), " ")
end
