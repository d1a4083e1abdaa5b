# Algorithms, controllers and sensitivity algorithms by name.

"""Where the names come from: packages, their identifiers, what they export. Loaded when a name is used."""
const PACKAGES = [
    ("OrdinaryDiffEqTsit5", "b1df2697-797e-41e3-8120-5422d3b24e4a", split("""
        Tsit5 AutoTsit5""")),
    ("OrdinaryDiffEqVerner", "79d7bb75-1356-48c1-b8c0-6832512096c2", split("""
        Vern6 Vern7 Vern8 Vern9 RKV76IIa AutoVern6 AutoVern7 AutoVern8 AutoVern9""")),
    ("OrdinaryDiffEqLowOrderRK", "1344f307-1e59-4825-a18e-ace9aa3fa4c6", split("""
        Euler SplitEuler Heun Ralston Midpoint RK4 BS3 OwrenZen3 OwrenZen4 OwrenZen5 BS5 DP5 Anas5 RKO65
        FRK65 RKM MSRK5 MSRK6 PSRK4p7q6 PSRK3p5q4 PSRK3p6q5 Stepanov5 SIR54 Alshina2 Alshina3 Alshina6
        AutoDP5 Ralston4""")),
    ("OrdinaryDiffEqHighOrderRK", "d28bc4f8-55e1-4f49-af69-84c1a99f0f58", split("""
        TanYam7 DP8 PFRK87 TsitPap8""")),
    ("OrdinaryDiffEqFeagin", "101fe9f7-ebb6-4678-b671-3a81e7194747", split("""
        Feagin10 Feagin12 Feagin14""")),
    ("OrdinaryDiffEqExplicitRK", "9286f039-9fbf-40e8-bf65-aa933bdc4db0", split("""
        ExplicitRK""")),
    ("OrdinaryDiffEqSSPRK", "669c94d9-1f4b-4b64-b377-1aa079aa2388", split("""
        SSPRK53_2N2 SSPRK22 SSPRK53 SSPRK63 SSPRK83 SSPRK43 SSPRK432 SSPRKMSVS32 SSPRK54 SSPRK53_2N1
        SSPRK104 SSPRK932 SSPRKMSVS43 SSPRK73 SSPRK53_H SSPRK33 KYKSSPRK42 KYK2014DGSSPRK_3S2 pRRK22
        pRRK33 pRRK54""")),
    ("OrdinaryDiffEqLowStorageRK", "b0944070-b475-4768-8dec-fb6eb410534d", split("""
        ORK256 CarpenterKennedy2N54 SHLDDRK64 DGLDDRK73_C DGLDDRK84_C DGLDDRK84_F NDBLSRK124 NDBLSRK134
        NDBLSRK144 CFRLDDRK64 TSLDDRK74 CKLLSRK43_2 CKLLSRK54_3C CKLLSRK95_4S CKLLSRK95_4C CKLLSRK95_4M
        CKLLSRK54_3C_3R CKLLSRK54_3M_3R CKLLSRK54_3N_3R CKLLSRK85_4C_3R CKLLSRK85_4M_3R CKLLSRK85_4P_3R
        CKLLSRK54_3N_4R CKLLSRK54_3M_4R CKLLSRK65_4M_4R CKLLSRK85_4FM_4R CKLLSRK75_4M_5R
        ParsaniKetchesonDeconinck3S32 ParsaniKetchesonDeconinck3S82 ParsaniKetchesonDeconinck3S53
        ParsaniKetchesonDeconinck3S173 ParsaniKetchesonDeconinck3S94 ParsaniKetchesonDeconinck3S184
        ParsaniKetchesonDeconinck3S105""")),
    ("OrdinaryDiffEqStabilizedRK", "358294b1-0aab-51c3-aafe-ad5ab194a2ad", split("""
        ROCK2 ROCK4 RKC RKMC2 ESERK4 ESERK5 SERK2 TSRKC2 TSRKC3 RKL1 RKL2 RKG1 RKG2""")),
    ("OrdinaryDiffEqExtrapolation", "becaefa8-8ca2-5cf9-886d-c06f3d2bd2c4", split("""
        AitkenNeville ExtrapolationMidpointDeuflhard ExtrapolationMidpointHairerWanner
        ImplicitEulerExtrapolation ImplicitDeuflhardExtrapolation ImplicitHairerWannerExtrapolation
        ImplicitEulerBarycentricExtrapolation""")),
    ("OrdinaryDiffEqAdamsBashforthMoulton", "89bda076-bce5-4f1c-845f-551c83cdda9a", split("""
        AB3 AB4 AB5 ABM32 ABM43 ABM54 VCAB3 VCAB4 VCAB5 VCABM3 VCABM4 VCABM5 VCABM""")),
    ("OrdinaryDiffEqNordsieck", "c9986a66-5c92-4813-8696-a7ec84c806c8", split("""
        AN5 JVODE JVODE_Adams JVODE_BDF""")),
    ("OrdinaryDiffEqBDF", "6ad6398a-0878-4a85-9266-38940aa047c8", split("""
        ABDF2 QNDF1 QBDF1 QNDF2 QBDF2 QNDF QBDF FBDF SBDF SBDF2 SBDF3 SBDF4 MEBDF2 IMEXEuler
        IMEXEulerARK DABDF2 DImplicitEuler DFBDF NordsieckBDF DNordsieckBDF""")),
    ("OrdinaryDiffEqSDIRK", "2d112036-d095-4a1e-ab9a-08536f3ecdbf", split("""
        Predictor ImplicitEuler ImplicitMidpoint Trapezoid TRBDF2 SDIRK2 SDIRK22 Kvaerno3 KenCarp3 Cash4
        Hairer4 Hairer42 SSPSDIRK2 Kvaerno4 Kvaerno5 KenCarp4 KenCarp47 KenCarp5 KenCarp58
        ESDIRK54I8L2SA SFSDIRK4 SFSDIRK5 CFNLIRK3 SFSDIRK6 SFSDIRK7 SFSDIRK8 ESDIRK325L2SA
        ESDIRK436L2SA2 ESDIRK437L2SA ESDIRK547L2SA2 ESDIRK659L2SA ARS343 ARS222 ARS232""")),
    ("OrdinaryDiffEqFIRK", "5960d6e9-dd7a-4743-88e7-cf307b64f125", split("""
        RadauIIA3 RadauIIA5 RadauIIA9 AdaptiveRadau GaussLegendre""")),
    ("OrdinaryDiffEqRosenbrock", "43230ef6-c299-4910-a778-202eb28ce4ce", split("""
        Rosenbrock23 Rosenbrock32 RosShamp4 Veldd4 Velds4 GRK4T GRK4A Ros4LStab ROS3P Rodas3 Rodas3d
        Rodas23W Rodas3P Rodas4 Rodas42 Rodas4P Rodas4P2 Rodas4PW Rodas5 Rodas5P Rodas5Pe Rodas5Pr
        Rodas6P HybridExplicitImplicitRK Tsit5DA RosenbrockW6S4OS ROS34PW1a ROS34PW1b ROS34PW2 ROS34PW3
        ROS34PRw ROS3PRL ROS3PRL2 ROK4a""")),
    ("OrdinaryDiffEqPDIRK", "5dd0a6cf-3d4b-4314-aa06-06d4e299bc89", split("""
        PDIRK44""")),
    ("OrdinaryDiffEqCore", "bbf590c4-e513-4bbe-9b18-05decba2e5d8", split("""
        IController PIController PIDController PredictiveController AutoSwitch CompositeAlgorithm""")),
    ("ADTypes", "47edcb42-4c32-4615-8424-f2b9edc5f35b", split("AutoFiniteDiff AutoForwardDiff")),
    ("LinearSolve", "7ed4a6bd-45f5-4d41-b270-4a48e9bafcae", split("""
        LUFactorization QRFactorization GenericLUFactorization RFLUFactorization KLUFactorization UMFPACKFactorization
        KrylovJL_GMRES KrylovJL_BICGSTAB KrylovJL_CG SimpleGMRES""")),
    ("OrdinaryDiffEqNonlinearSolve", "127b3ac7-2247-4354-8eb6-78cf4e7c58e8", split("NLNewton NLAnderson NLFunctional")),
    ("SciMLSensitivity", "1ed8b502-d754-442c-8d5d-10ac956f44a1", split("""
        BacksolveAdjoint InterpolatingAdjoint QuadratureAdjoint GaussAdjoint GaussKronrodAdjoint ZygoteVJP""")),
]
"""Where names of algorithms are looked up."""
module Names
using LinearAlgebra
end

const OWNER = Dict{Symbol, Int}(Symbol(name) => i for (i, row) in enumerate(PACKAGES) for name in row[3])

"""
    load(name)

Make a package's names known to expressions. Throws `Refused` with what to do where it is not installed.
"""
function load(index::Int)
    name, uuid, names = PACKAGES[index]
    id = Base.PkgId(Base.UUID(uuid), name)
    if Base.locate_package(id) === nothing
        throw(Refused("$(name).jl, which has $(first(names)), is not installed in the Julia project of pynode"))
    end
    package = Base.require(id)
    for known in names
        symbol = Symbol(known)
        isdefined(package, symbol) && !isdefined(Names, symbol) &&
            Core.eval(Names, :(const $symbol = $(getglobal(package, symbol))))
    end
    return nothing
end

symbols(x::Symbol, found) = push!(found, x)
symbols(x::Expr, found) = foreach(arg -> symbols(arg, found), x.args)
symbols(x, found) = nothing

"""
    named(expression) -> object

What an expression such as `"AutoTsit5(Rosenbrock23())"` means; a name alone is called without arguments.
"""
function named(expression::String)
    code = try
        Meta.parse(expression)
    catch
        throw(Refused("$expression cannot be read as Julia"))
    end
    code isa Symbol && (code = Expr(:call, code))
    found = Symbol[]
    symbols(code, found)
    for symbol in found
        haskey(OWNER, symbol) && !isdefined(Names, symbol) && load(OWNER[symbol])
    end
    return try
        Core.eval(Names, code)
    catch error
        error isa Refused && rethrow()
        throw(Refused("$expression: $(first(sprint(showerror, error), 300))"))
    end
end

"""The explicit Runge-Kutta method of a tableau of pynode's own; `E` weights the error estimate, empty for none."""
function tableau(A, b, c, E, order, embedded)
    rk = DiffEqBase.ExplicitRKTableau(A, c, b, order; αEEst = isempty(E) ? Float64[] : b .- E,
        adaptiveorder = embedded, fsal = false)
    id = Base.PkgId(Base.UUID("9286f039-9fbf-40e8-bf65-aa933bdc4db0"), "OrdinaryDiffEqExplicitRK")
    Base.locate_package(id) === nothing && throw(Refused("OrdinaryDiffEqExplicitRK.jl is not installed"))
    return Base.invokelatest(getglobal(Base.require(id), :ExplicitRK); tableau = rk)
end
Core.eval(Names, :(const tableau = $tableau))

implicit(algorithm) = OrdinaryDiffEqCore.isimplicit(algorithm)
