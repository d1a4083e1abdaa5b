# Mass matrices: `M u' = f(u, p, t)` with a constant dense `M`, which may be singular where the problem is of index 1.

"""
A mass matrix by its singular values. `inverse` is its pseudoinverse; `left` and `right` (n, k) span what it annihilates:
`left' f = 0` are the algebraic equations, `right` the directions of the variables that they determine.
"""
struct Mass{T}
    matrix::Matrix{T}
    inverse::Matrix{T}
    left::Matrix{T}
    right::Matrix{T}
end

function Mass(matrix::Matrix{T}) where {T}
    u, s, v = svd(matrix)
    rank = count(>(maximum(s) * length(s) * eps(T)), s)
    return Mass{T}(matrix, (v[:, 1:rank] ./ s[1:rank]') * u[:, 1:rank]', u[:, (rank + 1):end], v[:, (rank + 1):end])
end

singular(mass::Mass) = !isempty(mass.left)

"""Python's matrix at `pointer`, which lies row by row; nothing where there is none."""
mass_at(::Type{T}, pointer, n) where {T} =
    pointer == C_NULL ? nothing : Mass(permutedims(unsafe_wrap(Array, Ptr{T}(pointer), (n, n))))

"""Methods that take singular mass matrices, and those that take regular ones beside them: where states between steps have
been found right, too. Elsewhere SciML's cubic dense output takes `f` for `du/dt` (`Trapezoid`: off by 1e-3 at 1e-6)."""
const ALGEBRAIC = Set([:FBDF, :Rodas4, :Rodas42, :Rodas4P, :Rodas4P2, :Rodas5, :Rodas5P, :Rodas5Pe, :Rodas5Pr])
const REGULAR = Set([:Rosenbrock23, :KenCarp4, :TRBDF2])

function check_mass(::Nothing, algorithm)
    return nothing
end
function check_mass(mass::Mass, algorithm)
    name = nameof(typeof(algorithm))
    remedy = "Rodas5P and FBDF do"
    name in ALGEBRAIC || name in REGULAR || throw(Refused("$name takes no mass matrices; $remedy"))
    singular(mass) && !(name in ALGEBRAIC) && throw(Refused("$name takes no singular mass matrices; $remedy"))
    OrdinaryDiffEqCore.only_diagonal_mass_matrix(algorithm) && !isdiag(mass.matrix) &&
        throw(Refused("$name takes diagonal mass matrices only; $remedy"))
    return nothing
end

function odefunction(field::Field, ::Bool, mass::Mass)
    prototype = fill!(similar(field.a, field.n, field.n), 0)
    return ODEFunction{true, SciMLBase.FullSpecialize}(RHS(field); jac = JAC(field), tgrad = TGRAD(field),
        jac_prototype = prototype, mass_matrix = mass.matrix)
end

"""A field under a mass matrix, at one place."""
struct Linearised{F, T}
    field::F
    mass::Mass{T}
    "`(df/du)' left`, the gradients of the algebraic equations, in columns."
    gradients::Matrix{T}
    "`right' (df/du)' left`, factored."
    inner::Any
end

function Linearised(field::Field{T}, mass::Mass{T}, u, p, t) where {T}
    gradients = similar(mass.left)
    for (i, column) in enumerate(eachcol(mass.left))
        gradients[:, i] = product(field, Vector{T}(column), u, p, t)
    end
    return Linearised(field, mass, gradients, singular(mass) ? lu(mass.right' * gradients) : nothing)
end

"""`(df/du)' λ`."""
function product(field::Field{T, V}, λ::V, u, p, t) where {T, V}
    out = similar(λ)
    field.counts.vjp += 1
    field.vjp(out, λ, u, p, Float64(t))
    return out
end

"""
    multipliers(at, g) -> c

How much of the algebraic equations' gradients makes `g + gradients * c` vanish along the variables they determine.
A derivative `g` by all variables becomes one by the differential variables alone, on which the others depend.
"""
multipliers(at::Linearised, g) = singular(at.mass) ? -(at.inner \ (at.mass.right' * g)) : similar(g, 0)

"""
    UnderMass(field, mass)

The products of the differential equation that `M u' = f` implies for the differential variables, as an adjoint solver
asks for them: `μ = M'λ` obeys `μ' = -(df/du)' λ`, where `λ` is what `M'λ = μ` and the algebraic equations leave.
"""
struct UnderMass{F, T}
    field::F
    mass::Mass{T}
end

"""`λ` and `(df/du)' λ`."""
function adjoints(m::UnderMass, μ, u, p, t)
    at = Linearised(m.field, m.mass, u, p, t)
    λ = m.mass.inverse' * μ
    g = product(m.field, λ, u, p, t)
    c = multipliers(at, g)
    return λ .+ m.mass.left * c, g .+ at.gradients * c
end

struct MassVJP{M}
    of::M
end
function (r::MassVJP)(dμ, μ, u, p, t)
    poll()
    _, g = adjoints(r.of, copy(μ), copy(u), p, t)
    copyto!(dμ, g)
    return nothing
end

struct MassVJPP{M}
    of::M
end
function (r::MassVJPP)(g, μ, u, p, t)
    field = r.of.field
    field.np == 0 && return (fill!(g, 0); nothing)
    λ, _ = adjoints(r.of, copy(μ), copy(u), p, t)
    VJPP(field)(g, λ, u, p, t)
    return nothing
end

struct MassJAC{M}
    of::M
end
function (r::MassJAC)(J, u, p, t)
    field, mass, y = r.of.field, r.of.mass, copy(u)
    at = Linearised(field, mass, y, p, t)
    for i in 1:(field.n)
        g = product(field, mass.inverse[i, :], y, p, t)
        J[i, :] = g .+ at.gradients * multipliers(at, g)
    end
    poll()
    return nothing
end

"""`du/dt` into `out`: also of the algebraic variables, by differentiating their equations."""
function rate!(out, ::Nothing, field, u, p, t)
    field.f(out, u, p, t)
    field.counts.f += 1
    return nothing
end
function rate!(out, mass::Mass, field, u, p, t)
    rate!(out, nothing, field, u, p, t)
    differential = mass.inverse * out
    if singular(mass)
        at = Linearised(field, mass, u, p, t)
        field.tgrad(out, u, p, t)
        along = at.gradients' * differential .+ mass.left' * out
        differential .-= mass.right * (at.inner' \ along)
    end
    copyto!(out, differential)
    return nothing
end

"""The adjoint solver's view of a solution: without the mass matrix, by the products of the equation it implies, and over
the steps that were taken."""
function for_adjoints(solution, mass::Mass, field)
    under = UnderMass(field, mass)
    prototype = fill!(similar(field.a, field.n, field.n), 0)
    f = ODEFunction{true, SciMLBase.FullSpecialize}(RHS(field); vjp = MassVJP(under), vjp_p = MassVJPP(under),
        jac = MassJAC(under), jac_prototype = prototype)
    return over_steps(solution, f)
end
for_adjoints(solution, ::Nothing, field) = solution

function over_steps(solution, f = solution.prob.f)
    old = solution.prob
    prob = ODEProblem{true, SciMLBase.FullSpecialize}(f, old.u0, (old.tspan[1], solution.t[end]), old.p)
    return SciMLBase.ConstructionBase.setproperties(solution, (; prob, retcode = ReturnCode.Success))
end

"""
    reduce!(row, direct, mass, field, solution, t)

Make the derivative `row` of a loss by the state at `t` one by its differential variables. What it has by the parameters,
through the algebraic equations, is added to `direct`.
"""
reduce!(row, direct, ::Nothing, field, solution, t) = nothing
function reduce!(row, direct, mass::Mass, field, solution, t)
    singular(mass) || return nothing
    y, p = similar(field.a), solution.prob.p
    solution(y, t)
    at = Linearised(field, mass, y, p, t)
    c = multipliers(at, row)
    row .+= at.gradients * c
    if field.np > 0
        part = similar(direct)
        VJPP(field)(part, mass.left * c, y, p, t)
        direct .+= part
    end
    return nothing
end
