"""Controlled differential equations: fields driven by a path through data."""

from __future__ import annotations

import itertools
from typing import Any

from torch import Tensor, nn

from pynode.algorithms import Algorithm, Tsit5, as_algorithm
from pynode.controls.control import Control, slope
from pynode.errors import FieldError, InputError, explain
from pynode.sensealg import SensitivityAlgorithm
from pynode.solution import Solution
from pynode.solve import solve


class MatrixField(nn.Module):
    """``f(t, z)``: a perceptron from the state to (batch..., hidden, channels) matrices, tanh last.

    The last tanh bounds the field, without which long series make training diverge (Kidger et al. 2020). SiLU inside,
    so that the field may be differentiated more than once.

    Parameters
    ----------
    hidden, channels : int
        Size of the state, and of the control (time included).
    width, depth : int
        Of the hidden layers, and their number.

    Examples
    --------
    >>> pynode.nn.MatrixField(hidden=4, channels=3)(torch.tensor(0.0), torch.randn(5, 4)).shape
    torch.Size([5, 4, 3])
    """

    def __init__(self, hidden: int, channels: int, width: int = 32, depth: int = 1) -> None:
        super().__init__()
        self.hidden, self.channels = hidden, channels
        sizes = [hidden, *[width] * depth]
        layers: list[nn.Module] = []
        for inner, outer in itertools.pairwise(sizes):
            layers += [nn.Linear(inner, outer), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Linear(sizes[-1], hidden * channels), nn.Tanh())

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        matrix: Tensor = self.net(z)
        return matrix.reshape(*z.shape[:-1], self.hidden, self.channels)


class ControlledField(nn.Module):
    """``dz/dt = f(t, z) dX/dt``: a controlled equation as an ordinary one, for :func:`pynode.solve`.

    Called with ``args = (control.knots, control.coefficients, *more)``; ``more`` goes to ``f``.

    Examples
    --------
    >>> ts, x = torch.tensor([0.0, 1.0]), torch.tensor([[0.0, 0.0], [1.0, 3.0]])
    >>> control = pynode.controls.LinearControl(ts, x)
    >>> field = pynode.nn.ControlledField(lambda t, z: torch.ones(1, 2))
    >>> sol = pynode.solve(field, torch.zeros(1), [0.0, 1.0], args=(control.knots, control.coefficients))
    >>> round(sol.ys[-1].item(), 4)  # the path's own increments, 1 + 3
    4.0
    """

    def __init__(self, f: Any) -> None:
        super().__init__()
        self.f = f

    def forward(self, t: Tensor, z: Tensor, knots: Tensor, coefficients: Tensor, *more: Any) -> Tensor:
        rate = slope(knots, coefficients, t)
        matrix = self.f(t, z, *more)
        if matrix.shape != (*z.shape, rate.shape[-1]):
            raise FieldError(
                explain(
                    f"f returned a tensor of shape {tuple(matrix.shape)} for a state of shape {tuple(z.shape)} and a "
                    f"control with {rate.shape[-1]} channels",
                    f"(batch..., hidden, channels), here {(*z.shape, rate.shape[-1])}",
                    "check the field's sizes, and that time and counts are counted among the channels",
                )
            )
        derivative: Tensor = (matrix @ rate.unsqueeze(-1)).squeeze(-1)
        return derivative


class NeuralCDE(nn.Module):
    """``z(t) = z(t0) + integral f(z) dX``, ``z(t0) = initial(X(t0))`` (Kidger et al. 2020): an RNN in continuous time.

    The path X is a :class:`pynode.controls.Control` through irregular, incomplete data. Where its derivative jumps,
    adaptive steps end and the field is evaluated on both sides; fixed-step algorithms step from knot to knot.

    Parameters
    ----------
    f : torch.nn.Module or callable
        ``f(t, z, *args)``: matrices (batch..., hidden, channels), see :class:`MatrixField`.
    initial : torch.nn.Module or callable
        From (batch..., channels) to the initial state (batch..., hidden).
    readout : torch.nn.Module or callable, optional
        From states to results; the states themselves by default.
    algorithm, sensealg, rtol, atol
        As for :class:`NeuralODE`.
    **options
        Further keyword arguments of :func:`pynode.solve`.

    Notes
    -----
    Gradients reach the values the control was built from, through its coefficients.

    References
    ----------
    Kidger, Morrill, Foster and Lyons (2020), "Neural Controlled Differential Equations for Irregular Time Series".

    Examples
    --------
    >>> ts, x = torch.linspace(0, 1, 6), torch.randn(4, 6, 3)
    >>> control = pynode.controls.HermiteControl(ts, x)
    >>> model = pynode.nn.NeuralCDE(pynode.nn.MatrixField(8, 3), torch.nn.Linear(3, 8), torch.nn.Linear(8, 1))
    >>> model(control).shape
    torch.Size([4, 1])
    """

    def __init__(
        self,
        f: Any,
        initial: Any,
        readout: Any = None,
        *,
        algorithm: Algorithm | str = Tsit5(),  # noqa: B008  (immutable)
        sensealg: SensitivityAlgorithm | None = None,
        rtol: float = 1e-5,
        atol: float = 1e-7,
        **options: Any,
    ) -> None:
        super().__init__()
        for name, given in (("f", f), ("initial", initial), ("readout", readout)):
            if not callable(given) and not (name == "readout" and given is None):
                raise InputError(explain(f"{name} is a {type(given).__name__}", "a callable", "pass a module"))
        for name in ("t", "args", "saveat"):
            if name in options:
                raise InputError(explain(f"NeuralCDE got {name}=", "options of the solve", "pass it to solve()"))
        self.field = ControlledField(f)
        self.initial = initial
        self.readout = readout
        self.algorithm = as_algorithm(algorithm, options.get("backend", "torch"))
        self.sensealg = sensealg
        self.rtol = rtol
        self.atol = atol
        self.options = options

    def forward(self, control: Control, ts: Any = None, *args: Any, z0: Tensor | None = None) -> Tensor:
        """Results at the end of the path, or at times.

        Parameters
        ----------
        control : Control
        ts : 1-D tensor or sequence of float, optional
            Increasing places (M,) on the path; ``control.observed`` for those at which each row has been taken in.
        *args
            Further arguments of ``f``.
        z0 : Tensor, optional
            Initial state (batch..., hidden), instead of ``initial(X(t0))``: to go on from a state, or to start from
            more than the path.

        Returns
        -------
        Tensor
            (batch..., results), or (batch..., M, results) with ``ts``.
        """
        _check(control)
        states: Tensor = self.solve(control, control.knots[-1:] if ts is None else ts, args, z0).ys.movedim(0, -2)
        if ts is None:
            states = states.squeeze(-2)
        results: Tensor = states if self.readout is None else self.readout(states)
        return results

    def solve(self, control: Control, ts: Any = None, args: tuple[Any, ...] = (), z0: Tensor | None = None) -> Solution:
        """The whole :class:`pynode.Solution`, states (M, batch..., hidden), at ``ts`` (M,), by default the knots."""
        _check(control)
        knots = control.knots
        options = dict(self.options)
        options["tstops"] = [*control.bends, *options.get("tstops", ())]
        options["d_discontinuities"] = [*control.jumps, *options.get("d_discontinuities", ())]
        return solve(
            self.field,
            self.initial(control.start) if z0 is None else z0,
            knots[:: len(knots) - 1] if self.algorithm.adaptive else knots,
            args=(knots, control.coefficients, *args),
            algorithm=self.algorithm,
            sensealg=self.sensealg,
            rtol=self.rtol,
            atol=self.atol,
            saveat=knots if ts is None else ts,
            **options,
        )

    def extra_repr(self) -> str:
        sensealg = "default" if self.sensealg is None else self.sensealg.name
        return f"algorithm={self.algorithm.name}, sensealg={sensealg}, rtol={self.rtol:g}, atol={self.atol:g}"


def _check(control: Any) -> None:
    if not isinstance(control, Control):
        raise InputError(
            explain(
                f"control is a {type(control).__name__}",
                "a path through the data",
                "build one, such as pynode.controls.HermiteControl(ts, x)",
            )
        )
