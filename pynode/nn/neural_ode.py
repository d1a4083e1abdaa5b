"""A differential equation as a layer."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from pynode.algorithms import Algorithm, Tsit5, as_algorithm
from pynode.errors import InputError, explain
from pynode.layout import Tree, leaves_of
from pynode.nn.over_length import over_length
from pynode.nn.times import Times
from pynode.nn.trees import check_callable, last, map_leaves
from pynode.sensealg import SensitivityAlgorithm
from pynode.solution import Solution
from pynode.solve import solve


class NeuralODE(torch.nn.Module):
    """The flow of a vector field as a module: ``x -> output(y(t[-1]))`` with ``dy/dt = f(t, y, *c, *args)``,
    ``y(t[0]) = input(x)``, ``c = condition(x)`` (Chen et al. 2018; Massaroli, Poli et al. 2020).

    Parameters
    ----------
    f : torch.nn.Module or callable
        The field ``f(t, y, *args)``; registered as the submodule ``f`` if it is a module.
    t : sequence of float, tensor, or torch.nn.Module
        Start and end time, with save times in between if you like. A ``torch.nn.Parameter``, alone or among numbers
        (``(0.0, torch.nn.Parameter(torch.tensor(1.0)))``), is learned; a module is called without arguments for them.
    input : torch.nn.Module or callable, optional
        The initial state from the input: :class:`Augment`, :class:`InputLayer`, any network.
    output : torch.nn.Module or callable, optional
        Applied to the state at the last time.
    condition : torch.nn.Module or callable, or a sequence of modules, optional
        Functions of the input, evaluated once a solve: the field's (and the running cost's) first further arguments,
        as :class:`DataControl`, :class:`AdaptiveDepth` and :class:`ConditionalHyperNetwork` take them.
    algorithm : Algorithm or str
    sensealg : SensitivityAlgorithm, optional
    rtol, atol : float
    running_cost : torch.nn.Module or callable, optional
        See :func:`pynode.solve` and :mod:`pynode.training`; registered as the submodule ``running_cost`` if it is a
        module. The integral is that of the solution :meth:`solve` returns, and comes with the output from
        :meth:`output_and_cost`. One with a method ``drawn(y0)`` is asked for the cost of each solve.
    **options
        Further keyword arguments of :func:`pynode.solve`. The ``d_discontinuities`` of the field's modules
        (:class:`Stacked`) are added to those given.

    Notes
    -----
    The module holds no state of a solve: one instance may be used from several threads. Times, algorithm and options
    are plain attributes and may be changed between calls; :meth:`with_tolerance` and :meth:`with_solver` give the same
    model, parameters shared, with others (tighter tolerances at test time, say).

    Examples
    --------
    >>> model = pynode.nn.NeuralODE(lambda t, y: -y, t=(0.0, 1.0), output=lambda y: 10 * y)
    >>> round(model(torch.ones(1, 1)).item(), 2)  # 10 exp(-1)
    3.68
    >>> model.trajectory(torch.ones(1, 1), [0.0, 0.5, 1.0]).shape
    torch.Size([3, 1, 1])
    >>> model.with_tolerance(1e-8).rtol, model.with_solver(pynode.RK4(steps=4)).algorithm.name
    (1e-08, 'RK4')
    """

    def __init__(
        self,
        f: Any,
        t: Any = (0.0, 1.0),
        *,
        input: Callable[[Any], Tree] | None = None,
        output: Callable[[Tree], Any] | None = None,
        condition: Any = None,
        algorithm: Algorithm | str = Tsit5(),  # noqa: B008  (immutable)
        sensealg: SensitivityAlgorithm | None = None,
        rtol: float = 1e-5,
        atol: float = 1e-7,
        running_cost: Any = None,
        **options: Any,
    ) -> None:
        super().__init__()
        check_callable("f", f, "f(t, y)")
        for name, given in (("input", input), ("output", output)):
            if given is not None:
                check_callable(name, given, "of one argument")
        if isinstance(condition, list | tuple):
            condition = torch.nn.ModuleList(condition)
        elif condition is not None:
            check_callable("condition", condition, "of the input, or a sequence of modules")
        if isinstance(t, list | tuple) and any(isinstance(time, torch.nn.Parameter) for time in t):
            t = Times(t)
        self.f = f
        self.t = t
        self.input = input
        self.output = output
        self.condition = condition
        self.algorithm = as_algorithm(algorithm, options.get("backend", "torch"))
        self.sensealg = sensealg
        self.rtol = rtol
        self.atol = atol
        self.running_cost = running_cost
        self.options = options
        self._solve_hooks: OrderedDict[int, Callable[..., Any]] = OrderedDict()

    def forward(self, x: Any, *args: Any) -> Any:
        """Output at the last time: the state, in the form of the initial one, where there is no output layer. Further
        arguments go to the field."""
        end = last(self.solve(x, args=args).ys)
        return end if self.output is None else self.output(end)

    def output_and_cost(self, x: Any, *args: Any) -> tuple[Any, Any]:
        """What :meth:`forward` gives, and the integral of the running cost over ``|dt|`` along the same solve.

        Raises
        ------
        InputError
            If the model has no running cost.
        """
        if self.running_cost is None:
            raise InputError(explain("this NeuralODE has no running cost", "a running_cost=", "call it, or give one"))
        sol = self.solve(x, args=args)
        end = last(sol.ys)
        return end if self.output is None else self.output(end), over_length(sol, self.running_cost)

    def trajectory(self, x: Any, ts: Any, *args: Any) -> Any:
        """Outputs at ``ts`` (T,), the first of which is the initial time: leaves of shape (T, *leaf shape)."""
        ys = self.solve(x, ts, args=args).ys
        if self.output is None:
            return ys
        count = len(next(leaves_of(ys))[1])
        # One call a time: the output layer's batch dimension is that of one state.
        each = [self.output(map_leaves(lambda leaf, i=i: leaf[i], ys)) for i in range(count)]
        return map_leaves(lambda *leaves: torch.stack(leaves), *each)

    def solve(self, x: Any, ts: Any = None, args: tuple[Any, ...] = ()) -> Solution:
        """The whole :class:`pynode.Solution`, statistics included, at ``ts`` (by default the module's ``t``).

        ``ys`` are states, not outputs.
        """
        options = self.options
        jumps = (*options.get("d_discontinuities", ()), *_discontinuities(self.f), *_discontinuities(self.running_cost))
        if jumps:
            options = {**options, "d_discontinuities": jumps}
        if ts is None:
            ts = self.t() if isinstance(self.t, torch.nn.Module) else self.t
        y0 = x if self.input is None else self.input(x)
        cost = self.running_cost
        if hasattr(cost, "drawn"):
            cost = cost.drawn(y0)
        solution = solve(
            self.f,
            y0,
            ts,
            args=(*self.conditions(x), *args),
            algorithm=self.algorithm,
            sensealg=self.sensealg,
            rtol=self.rtol,
            atol=self.atol,
            running_cost=cost,
            **options,
        )
        for hook in tuple(self._solve_hooks.values()):
            replaced = hook(self, (x, *args), solution)
            solution = solution if replaced is None else replaced
        return solution

    def with_solver(self, algorithm: Algorithm | str | None = None, **options: Any) -> NeuralODE:
        """The same model, parameters and modules shared, solved otherwise.

        Parameters
        ----------
        algorithm : Algorithm or str, optional
            This one's by default. With another one ``sensealg`` becomes the default unless it is given too.
        **options
            ``rtol``, ``atol``, ``sensealg``, ``running_cost`` and all other keyword arguments of
            :func:`pynode.solve`, in place of this one's.

        Returns
        -------
        NeuralODE
            Without the hooks of this one. ``self`` is left as it is.

        Raises
        ------
        InputError
            For an unknown algorithm.
        """
        twin = copy.copy(self)
        # Its own tables of the shared modules: to replace one in the twin must not replace it here.
        for table in ("_modules", "_parameters", "_buffers"):
            twin.__dict__[table] = dict(self.__dict__[table])
        if algorithm is not None:
            twin.algorithm = as_algorithm(algorithm, options.get("backend", self.options.get("backend", "torch")))
            twin.sensealg = None
        for name in ("rtol", "atol", "sensealg", "running_cost"):
            if name in options:
                setattr(twin, name, options.pop(name))
        twin.options = {**self.options, **options}
        return twin

    def with_tolerance(self, rtol: float, atol: float | None = None) -> NeuralODE:
        """The same model, parameters shared, solved to other tolerances: the price of an evaluation is chosen when it
        is asked for. ``atol`` keeps its ratio to ``rtol`` unless it is given.

        Raises
        ------
        InputError
            Where the algorithm has fixed steps, which no tolerance changes.
        """
        if not self.algorithm.adaptive:
            raise InputError(
                explain(
                    f"with_tolerance of a NeuralODE with {self.algorithm.name}, whose steps are fixed",
                    "an adaptive algorithm",
                    f"write with_solver({self.algorithm.name}(steps=...)) or with_solver('tsit5', rtol=...)",
                )
            )
        return self.with_solver(rtol=rtol, atol=self.atol * (rtol / self.rtol) if atol is None else atol)

    def register_solve_hook(self, hook: Callable[..., Any]) -> RemovableHandle:
        """``hook(self, (x, *args), solution)`` is called after every solve; it may return another
        :class:`pynode.Solution` to take the place of this one.

        :class:`pynode.training.StepAdapter` and :class:`pynode.training.History` are such hooks.

        Returns
        -------
        torch.utils.hooks.RemovableHandle
            ``handle.remove()`` takes the hook away.
        """
        check_callable("hook", hook, "hook(module, inputs, solution)")
        handle = RemovableHandle(self._solve_hooks)
        self._solve_hooks[handle.id] = hook
        return handle

    def __getstate__(self) -> dict[str, Any]:
        # Hooks belong to this object: a copy or a file would carry their owners (a training's log, say) along.
        return {**self.__dict__, "_solve_hooks": OrderedDict()}

    def conditions(self, x: Any) -> tuple[Any, ...]:
        """The field's first further arguments for an input: ``condition`` of it."""
        if isinstance(self.condition, torch.nn.ModuleList):
            return tuple(condition(x) for condition in self.condition)
        return () if self.condition is None else (self.condition(x),)

    def extra_repr(self) -> str:
        listed = self.t.tolist() if isinstance(self.t, Tensor) else self.t
        t = "" if isinstance(listed, torch.nn.Module) else f"t={list(listed)}, "
        sensealg = "default" if self.sensealg is None else self.sensealg.name
        return f"{t}algorithm={self.algorithm.name}, sensealg={sensealg}, rtol={self.rtol:g}, atol={self.atol:g}"


def _discontinuities(part: Any) -> Iterator[float]:
    """The times at which the modules of ``part`` say that they jump."""
    if isinstance(part, torch.nn.Module):
        for module in part.modules():
            yield from getattr(module, "d_discontinuities", ())
