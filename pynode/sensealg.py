"""Sensitivity algorithms: how a gradient is obtained. Names and options only, no arithmetic.

Names are those of SciMLSensitivity.jl.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pynode.algorithms import Algorithm, algorithm_from_name
from pynode.controllers import PIDController
from pynode.errors import InputError, explain


@dataclass(frozen=True)
class SensitivityAlgorithm:
    """Base class of all sensitivity algorithms.

    Examples
    --------
    >>> pynode.GaussAdjoint().name, isinstance(pynode.GaussAdjoint(), pynode.SensitivityAlgorithm)
    ('GaussAdjoint', True)
    """

    @property
    def name(self) -> str:
        return type(self).__name__


@dataclass(frozen=True)
class DirectAdjoint(SensitivityAlgorithm):
    """Automatic differentiation through the accepted steps of the solver, on torch's own tape.

    The step-size search is not differentiated. Memory grows with the number of evaluations. Can be differentiated any
    number of times, and is what ``torch.func`` transforms (``grad``, ``jvp``, ``vmap``, ...) and dual numbers of
    ``torch.autograd.forward_ad`` pass through. Under ``vmap`` all samples are solved in common steps, each of which
    meets the tolerance of every sample.

    Examples
    --------
    >>> a = torch.tensor(0.5, requires_grad=True)
    >>> sol = pynode.solve(lambda t, y: a * y, torch.ones(1), [0.0, 1.0], sensealg=pynode.DirectAdjoint())
    >>> (first,) = torch.autograd.grad(sol.ys[-1].sum(), a, create_graph=True)
    >>> round(torch.autograd.grad(first, a)[0].item(), 3)  # the second derivative of exp(a)
    1.649
    """


@dataclass(frozen=True)
class CheckpointedAdjoint(SensitivityAlgorithm):
    """Exact discrete adjoint of the accepted steps, each replayed from its stored state: the default.

    The gradient equals ``DirectAdjoint``'s up to rounding. Memory: one state per step, or a bound on the states kept,
    honoured by online binomial checkpointing: the number of steps need not be known, and what was dropped is
    recomputed as seldom as the bound allows.

    The gradient can be differentiated once more (``create_graph=True``, Hessian-vector products): exact second
    derivatives of the steps that were taken, by a forward and a reverse sweep over them, in the memory of one tangent
    for each state kept.

    Parameters
    ----------
    checkpoints : int, optional
        Upper bound of the states kept, those of recomputed stretches included.
    max_memory : int, optional
        The same bound in bytes.

    References
    ----------
    Zhuang et al. (2020), "Adaptive Checkpoint Adjoint Method for Gradient Estimation in Neural ODE"; Wang, Moin and
    Iaccarino (2009), "Minimal repetition dynamic checkpointing algorithm for unsteady adjoint calculation"; Griewank
    and Walther (2000), "Algorithm 799: revolve".

    Examples
    --------
    >>> a = torch.tensor(0.5, requires_grad=True)
    >>> few = pynode.CheckpointedAdjoint(checkpoints=4)
    >>> sol = pynode.solve(lambda t, y: a * y, torch.ones(1), [0.0, 1.0], algorithm=pynode.RK4(steps=40), sensealg=few)
    >>> round(torch.autograd.grad(sol.ys[-1].sum(), a)[0].item(), 3)  # at most 4 of 41 states were kept at a time
    1.649
    """

    checkpoints: int | None = None
    max_memory: int | None = None

    def __post_init__(self) -> None:
        if self.checkpoints is not None and (self.checkpoints != int(self.checkpoints) or self.checkpoints < 2):
            raise InputError(
                explain(f"CheckpointedAdjoint(checkpoints={self.checkpoints})", "None or an integer >= 2", "give >= 2")
            )
        if self.max_memory is not None and not self.max_memory > 0:
            raise InputError(
                explain(
                    f"CheckpointedAdjoint(max_memory={self.max_memory})",
                    "None or a positive number of bytes",
                    "give the bytes that stored states may take, such as 2**30",
                )
            )
        if self.checkpoints is not None and self.max_memory is not None:
            raise InputError(
                explain("CheckpointedAdjoint got checkpoints and max_memory", "one bound", "drop one of them")
            )


@dataclass(frozen=True)
class ReversibleAdjoint(SensitivityAlgorithm):
    """Exact discrete adjoint in constant memory, for algebraically reversible algorithms.

    ``ReversibleHeun``, ``AsynchronousLeapfrog`` and the symplectic methods (``VelocityVerlet``, ...) can be run
    backward step by step to rounding, so that no state but the last is stored. The gradient equals ``DirectAdjoint``'s
    up to the rounding that running backward gathers.

    References
    ----------
    Kidger et al. (2021), "Efficient and Accurate Gradients for Neural SDEs"; Zhuang et al. (2021), "MALI: a memory
    efficient and reverse accurate integrator for neural ODEs".

    Examples
    --------
    >>> q0 = torch.ones(1, requires_grad=True)
    >>> options = {"algorithm": pynode.VelocityVerlet(dt=0.01), "sensealg": pynode.ReversibleAdjoint()}
    >>> sol = pynode.solve(lambda t, y: (y[1], -y[0]), (q0, torch.zeros(1)), [0.0, 1.0], **options)
    >>> round(torch.autograd.grad(sol.ys[0][-1].sum(), q0)[0].item(), 3)  # cos(1)
    0.54
    """


@dataclass(frozen=True)
class ForwardSensitivity(SensitivityAlgorithm):
    """Continuous forward sensitivities, integrated together with the state: for few parameters and few states.

    One column of sensitivities for every differentiated number: of ``y0`` (where it requires a gradient), of arguments
    and parameters, and of ``t[0]`` (where ``t`` does). All are advanced with each evaluation of ``f``, in as many
    products with its Jacobian as there are columns, or numbers in the state where those are fewer (counted as
    ``stats.forward.nvjp``). The backward pass is a contraction: nothing is integrated backward, and any number of
    losses on one solve cost nothing more. Fixed steps, and adaptive ones without error control, give the derivative
    of the computed solution, up to rounding; gradients of times are the continuous formulas ``<g, f(t_i, y_i)>``.
    Memory: the columns, in every stage and every stored step (``SaveAt(dense=False)`` stores none but the save
    points). With fewer columns than numbers in the state, ``f`` must be twice differentiable.

    Parameters
    ----------
    error_control : bool
        Sensitivities count in the error norm: it is the larger of the state's norm and of the root mean square of
        every column, scaled by the same tolerances. Otherwise the steps are those of the solve without a gradient.

    References
    ----------
    Hindmarsh et al. (2005), "SUNDIALS: Suite of nonlinear and differential/algebraic equation solvers" (CVODES).

    Examples
    --------
    >>> a = torch.tensor(0.5, requires_grad=True)
    >>> sol = pynode.solve(lambda t, y: a * y, torch.ones(1), [0.0, 1.0], sensealg=pynode.ForwardSensitivity())
    >>> (gradient,) = torch.autograd.grad(sol.ys[-1].sum(), a)
    >>> round(gradient.item(), 3), sol.stats.backward.nfe  # nothing is solved backward
    (1.649, 0)
    """

    error_control: bool = True


@dataclass(frozen=True, kw_only=True)
class ContinuousAdjoint(SensitivityAlgorithm):
    """Base class of the sensitivity algorithms that integrate the adjoint equation ``da/dt = -a df/dy`` backward.

    Parameters
    ----------
    algorithm : Algorithm or str, optional
        Integrator of the adjoint; the forward one by default. A fixed one with a ``mesh`` of its own has it called
        for each stretch between two saved times, backward.
    rtol, atol : float, or tensor, optional
        Tolerances of the adjoint; the forward ones by default. A tensor has the length of the flattened state, or of
        what is integrated backward.
    controller : PIDController, optional
        Step control of the adjoint; the forward one by default, or where that is its algorithm's default the one of
        the adjoint's algorithm.
    max_steps : int, optional
        Largest number of attempted steps between two saved times; by default the forward limit, and no more than
        1000 beyond thirty times the forward steps where algorithm and tolerances are the forward ones.
    dt0 : float, optional
        First step of every stretch between two saved times; by default chosen by Hairer's rule in the first stretch,
        and what the last step proposed in the others.
    dtmin, dtmax, tstops, d_discontinuities : optional
        As for ``pynode.solve``; the forward ones by default.
    observer : object, optional
        As for ``pynode.solve``, called with what is integrated backward, flat.
    """

    algorithm: Algorithm | None = None
    rtol: float | Tensor | None = None
    atol: float | Tensor | None = None
    controller: PIDController | None = None
    max_steps: int | None = None
    dt0: float | None = None
    dtmin: float | None = None
    dtmax: float | None = None
    tstops: Sequence[float] | None = None
    d_discontinuities: Sequence[float] | None = None
    observer: Any = None

    def __post_init__(self) -> None:
        if isinstance(self.algorithm, str):
            object.__setattr__(self, "algorithm", algorithm_from_name(self.algorithm))  # type: ignore[unreachable]


@dataclass(frozen=True, kw_only=True)
class _Normed(ContinuousAdjoint):
    """A continuous adjoint that integrates the parameter gradient together with the adjoint."""

    norm: str | Callable[[tuple[Any, ...]], Any] = "seminorm"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm not in ("seminorm", "full") and not callable(self.norm):
            raise InputError(
                explain(f"{self.name}(norm={self.norm!r})", "'seminorm', 'full' or a callable", "use 'seminorm'")
            )


@dataclass(frozen=True, kw_only=True)
class BacksolveAdjoint(_Normed):
    """Continuous adjoint integrated backward together with the state (Chen et al. 2018): constant memory.

    The state is restarted from the stored value at every saved time. Where the state cannot be reconstructed backward
    (dissipative, stiff or chaotic fields) the gradient would be wrong: the mismatch at every saved time is checked.
    What is integrated backward is ``(y, adjoint, arguments..., parameters...)``.

    Parameters
    ----------
    norm : "seminorm", "full" or callable
        Error norm of the adjoint solve. ``"seminorm"`` (Kidger, Chen and Lyons 2021) leaves the parameter channels,
        which are plain integrals, out of step control. ``"full"`` is the largest of the RMS norms of state, adjoint
        and each parameter, torchdiffeq's default. A callable gets the tuple ``(y, adjoint, *parameters)`` of scaled
        errors, each in the shape of its tensor (``y`` and ``adjoint`` flat), and returns a scalar tensor or a float.
    reconstruction_rtol : float or None
        Largest accepted relative distance between the state integrated backward and the stored one; ``None`` turns
        the check off.
    on_mismatch : "raise" or "warn"
        What a failed reconstruction check does.
    algorithm, rtol, atol, controller, max_steps, dt0, dtmin, dtmax, tstops, d_discontinuities, observer
        See ContinuousAdjoint.

    Examples
    --------
    >>> a = torch.tensor(0.5, requires_grad=True)
    >>> sol = pynode.solve(lambda t, y: a * y, torch.ones(1), [0.0, 1.0], sensealg=pynode.BacksolveAdjoint())
    >>> round(torch.autograd.grad(sol.ys[-1].sum(), a)[0].item(), 3)  # d exp(a) / da, in constant memory
    1.649
    """

    reconstruction_rtol: float | None = 1e-2
    on_mismatch: str = "raise"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.on_mismatch not in ("raise", "warn"):
            raise InputError(
                explain(f"BacksolveAdjoint(on_mismatch={self.on_mismatch!r})", "'raise' or 'warn'", "use one of them")
            )


@dataclass(frozen=True, kw_only=True)
class InterpolatingAdjoint(_Normed):
    """Continuous adjoint integrated backward against the forward solution's dense output.

    Stable where ``BacksolveAdjoint`` is not. What is integrated backward is
    ``(adjoint, arguments..., parameters...)``.

    Parameters
    ----------
    checkpointing : bool
        Keep about the square root of the number of steps in states and solve each stretch between two of them again,
        instead of keeping the stages of every step.
    norm : "seminorm", "full" or callable
        As for BacksolveAdjoint; a callable gets ``(adjoint, *parameters)``.
    algorithm, rtol, atol, controller, max_steps, dt0, dtmin, dtmax, tstops, d_discontinuities, observer
        See ContinuousAdjoint.

    Examples
    --------
    >>> a = torch.tensor(0.5, requires_grad=True)
    >>> sol = pynode.solve(lambda t, y: a * y, torch.ones(1), [0.0, 1.0], sensealg=pynode.InterpolatingAdjoint())
    >>> round(torch.autograd.grad(sol.ys[-1].sum(), a)[0].item(), 3)
    1.649
    """

    checkpointing: bool = False


@dataclass(frozen=True, kw_only=True)
class GaussAdjoint(ContinuousAdjoint):
    """Continuous adjoint with the parameter gradient by Gauss-Legendre quadrature along each of its steps.

    Only the adjoint itself is integrated, against the forward solution's dense output; ``int a df/dp dt`` is evaluated
    at a few nodes of every accepted step, on the adjoint's dense output.

    Parameters
    ----------
    checkpointing : bool
        As for InterpolatingAdjoint.
    nodes : int, optional
        Nodes per step; by default as many as the order of the adjoint's algorithm asks for.
    algorithm, rtol, atol, controller, max_steps, dt0, dtmin, dtmax, tstops, d_discontinuities, observer
        See ContinuousAdjoint.

    References
    ----------
    Norcliffe and Deisenroth (2023), "Faster Training of Neural ODEs Using Gauss-Legendre Quadrature"; SciMLSensitivity
    ``GaussAdjoint``.

    Examples
    --------
    >>> a = torch.tensor(0.5, requires_grad=True)
    >>> sol = pynode.solve(lambda t, y: a * y, torch.ones(1), [0.0, 1.0], sensealg=pynode.GaussAdjoint())
    >>> round(torch.autograd.grad(sol.ys[-1].sum(), a)[0].item(), 3)
    1.649
    """

    checkpointing: bool = False
    nodes: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nodes is not None and (self.nodes != int(self.nodes) or self.nodes < 1):
            raise InputError(explain(f"GaussAdjoint(nodes={self.nodes})", "None or an integer >= 1", "give 3"))


@dataclass(frozen=True, kw_only=True)
class GaussKronrodAdjoint(ContinuousAdjoint):
    """``GaussAdjoint`` with an adaptive Gauss-Kronrod rule on each step of the adjoint: ``backend="julia"`` only.

    Parameters
    ----------
    checkpointing : bool
        As for InterpolatingAdjoint.
    algorithm, rtol, atol, controller, max_steps, dt0, dtmin, dtmax, tstops, d_discontinuities, observer
        See ContinuousAdjoint.

    References
    ----------
    SciMLSensitivity ``GaussKronrodAdjoint``. In float32 at tight tolerances its refinement may not end, which is an
    error there.

    Examples
    --------
    >>> try:
    ...     pynode.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], sensealg=pynode.GaussKronrodAdjoint())
    ... except pynode.UnsupportedError as error:
    ...     print(error)
    backend 'torch' does not offer the sensitivity algorithm GaussKronrodAdjoint. Expected: a ...
    """

    checkpointing: bool = False


@dataclass(frozen=True, kw_only=True)
class QuadratureAdjoint(ContinuousAdjoint):
    """Continuous adjoint kept as a dense solution, the parameter gradient by adaptive Gauss-Kronrod quadrature.

    The integral ``int a df/dp dt`` has tolerances of its own, so that its error is controlled, not only the adjoint's.

    Parameters
    ----------
    quadrature_rtol, quadrature_atol : float, optional
        Tolerances of the integral, in the root mean square over all parameters; ``rtol`` and ``atol`` of the adjoint
        by default.
    algorithm, rtol, atol, controller, max_steps, dt0, dtmin, dtmax, tstops, d_discontinuities, observer
        See ContinuousAdjoint.

    Examples
    --------
    >>> a = torch.tensor(0.5, requires_grad=True)
    >>> sol = pynode.solve(lambda t, y: a * y, torch.ones(1), [0.0, 1.0], sensealg=pynode.QuadratureAdjoint())
    >>> round(torch.autograd.grad(sol.ys[-1].sum(), a)[0].item(), 3)
    1.649
    """

    quadrature_rtol: float | None = None
    quadrature_atol: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("quadrature_rtol", "quadrature_atol"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < math.inf:
                raise InputError(
                    explain(f"QuadratureAdjoint({name}={value})", "a finite number >= 0", "give one such as 1e-6")
                )
