# Solves and gradients on the CPU against the closed form of a damped rotation, and what is refused.

using PyNode, SciMLSensitivity, Test

include("crossing.jl")

"""Values at TIMES of u(t) = exp(-b t) R(a t) u(0), and the gradient of their sum by u(0) and (a, b)."""
function exact(u, a, b)
    rotation(t) = exp(-b * t) * [cos(a * t) sin(a * t); -sin(a * t) cos(a * t)]
    turned(t) = t * exp(-b * t) * [-sin(a * t) cos(a * t); -cos(a * t) -sin(a * t)]
    values = reduce(vcat, [rotation(t) * u for t in TIMES])
    dy0 = sum(transpose(rotation(t)) * ones(2) for t in TIMES)
    dp = [sum(sum(turned(t) * u) for t in TIMES), sum(-t * sum(rotation(t) * u) for t in TIMES)]
    return values, dy0, dp
end

@testset "$T $algorithm $adjoint" for T in (Float32, Float64), algorithm in ("Tsit5()", "Vern7()"), adjoint in ADJOINTS
    found = gradient(T, in_memory(TEXT, T), 0, algorithm, sensitivity(adjoint))
    for (x, y) in zip(found, exact([1, 0.5], 2, 0.3))
        @test maximum(abs, x - y) <= 1.0e-4 # 100 tolerances
    end
end

@testset "an unknown name is refused" begin
    @test_throws PyNode.Refused PyNode.named("NoSuchAlgorithm()")
end

@testset "what is let go of is gone" begin
    number = PyNode.hold([1.0])
    @test haskey(PyNode.HELD, number)
    PyNode.drop(number)
    @test !haskey(PyNode.HELD, number)
end

@testset "a norm over a part is the largest over its ranges" begin
    norm = PyNode.Ranges([1:2, 3:3])
    @test norm([3.0, 4.0, 1.0], 0.0) ≈ 5 / sqrt(2)
    @test norm([0.0, 1.0, 7.0], 0.0) ≈ 7
end
