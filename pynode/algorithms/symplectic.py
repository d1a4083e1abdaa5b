"""Methods for pairs of positions and momenta."""

from __future__ import annotations

from dataclasses import dataclass

from pynode.algorithms.base import FixedStep


@dataclass(frozen=True)
class Symplectic(FixedStep):
    """A method for separable fields on pairs ``(q, p)``: ``dq/dt = f_q(t, p)``, ``dp/dt = f_p(t, q)``.

    Kicks (``p += b h f_p``) and drifts (``q += a h f_q``) alternate. For ``f_q = dH/dp``, ``f_p = -dH/dq`` every step
    is a symplectic map: the energy error stays bounded over times exponentially long in ``1/h``, instead of growing
    (Hairer, Lubich and Wanner 2006, "Geometric Numerical Integration").

    The state is a tuple, list or named tuple of two trees, positions first (SciML's ``DynamicalODEProblem`` has the
    velocities first). The field is one of

    - any ``f(t, (q, p), *args) -> (dq, dp)``, which is called once for every half that is needed;
    - one with the methods ``velocity(t, p, *args) -> dq`` and ``force(t, q, *args) -> dp`` besides, which are called
      instead (``pynode.nn.HamiltonianODE(kinetic=, potential=)``, say).

    Every call, of the whole or of a half, counts as one evaluation. Whether the field is separable is tried before the
    first step, at three more evaluations; FieldError says which half is not. A running cost is integrated to the
    method's order, one evaluation a drift.

    Fixed steps: all options of FixedStep. Save points inside a step are filled by a cubic, of order 3 whatever the
    order of the method: let ``t`` or ``mesh`` meet them. Continuous adjoints need another algorithm for the way back
    (``GaussAdjoint(algorithm=Tsit5())``): the adjoint state is no pair. ``ReversibleAdjoint`` works. The native backend
    only.
    """


@dataclass(frozen=True)
class SymplecticEuler(Symplectic):
    """Symplectic Euler, order 1: a drift, then a kick. Two evaluations a step.

    Examples
    --------
    >>> field = lambda t, y: (y[1], -y[0])  # a pair of position and momentum
    >>> y0 = (torch.ones(1), torch.zeros(1))
    >>> q, p = pynode.solve(field, y0, [0.0, 100.0], algorithm=pynode.SymplecticEuler(dt=0.1)).ys
    >>> (0.5 * (q[-1] ** 2 + p[-1] ** 2)).item() < 0.6  # the energy stays near 1/2; explicit Euler's grows e^10-fold
    True
    """


@dataclass(frozen=True)
class VelocityVerlet(Symplectic):
    """Velocity Verlet (Stoermer-Verlet, leapfrog), order 2: half a kick, a drift, half a kick.

    Two evaluations a step, as the last force is the first of the next step.

    Examples
    --------
    >>> field = lambda t, y: (y[1], -y[0])
    >>> y0 = (torch.ones(1), torch.zeros(1))
    >>> q, p = pynode.solve(field, y0, [0.0, 100.0], algorithm=pynode.VelocityVerlet(dt=0.1)).ys
    >>> abs(0.5 * (q[-1] ** 2 + p[-1] ** 2) - 0.5).item() < 2e-3
    True
    """


@dataclass(frozen=True)
class Yoshida6(Symplectic):
    """Yoshida's sixth-order composition of seven Verlet steps, solution A (Yoshida 1990, "Construction of higher order
    symplectic integrators"). Fourteen evaluations a step.

    Some substeps go back in time, beyond the start and the end of the step: of fields that jump it sees the other side.

    Examples
    --------
    >>> field, y0 = lambda t, y: (y[1], -y[0]), tuple(torch.tensor([[1.0], [0.0]], dtype=torch.float64))
    >>> q, p = pynode.solve(field, y0, [0.0, 10.0], algorithm=pynode.Yoshida6(dt=0.1)).ys
    >>> abs(q[-1].item() - math.cos(10.0)) < 1e-6
    True
    """


@dataclass(frozen=True)
class McAte4(Symplectic):
    """McLachlan and Atela's method of four stages (1992, "The accuracy of symplectic integrators"), order 4 where
    ``dq/dt`` is linear in ``p`` (a quadratic kinetic energy); order 3 for other fields. Eight evaluations
    a step.

    Examples
    --------
    >>> field, y0 = lambda t, y: (y[1], -y[0]), tuple(torch.tensor([[1.0], [0.0]], dtype=torch.float64))
    >>> q, p = pynode.solve(field, y0, [0.0, 10.0], algorithm=pynode.McAte4(dt=0.1)).ys
    >>> abs(q[-1].item() - math.cos(10.0)) < 1e-4
    True
    """


@dataclass(frozen=True)
class KahanLi8(Symplectic):
    """Kahan and Li's composition of 17 Verlet steps (1997), order 8: for energies conserved to rounding. Thirty-four
    evaluations a step.

    Some substeps go back in time, beyond the start and the end of the step: of fields that jump it sees the other side.

    Examples
    --------
    >>> field, y0 = lambda t, y: (y[1], -y[0]), tuple(torch.tensor([[1.0], [0.0]], dtype=torch.float64))
    >>> q, p = pynode.solve(field, y0, [0.0, 10.0], algorithm=pynode.KahanLi8(dt=0.1)).ys
    >>> abs(q[-1].item() - math.cos(10.0)) < 1e-10
    True
    """
