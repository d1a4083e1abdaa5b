"""Densities as flows of a vector field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from pynode.algorithms import Algorithm, Tsit5, as_algorithm
from pynode.errors import InputError, explain
from pynode.nn.field_costs import OnFlow
from pynode.nn.log_density import LogDensity
from pynode.nn.over_length import over_length
from pynode.nn.trace import ExactTrace, TraceEstimator
from pynode.sensealg import SensitivityAlgorithm
from pynode.solution import Solution
from pynode.solve import solve


class StandardNormal(torch.nn.Module):
    """Independent standard normals of a shape, on the module's device in its precision, at first those of ``like``."""

    loc: Tensor
    scale: Tensor

    def __init__(self, event_shape: Sequence[int], like: Tensor) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(event_shape, dtype=like.dtype, device=like.device), persistent=False)
        self.register_buffer("scale", torch.ones_like(self.loc), persistent=False)

    def forward(self) -> Distribution:
        normal = Normal(self.loc, self.scale, validate_args=False)
        return Independent(normal, self.loc.ndim, validate_args=False)


class CNF(torch.nn.Module):
    """Continuous normalising flow (Chen et al. 2018): the density of what a field makes of a base distribution.

    ``dz/dt = f(t, z[, context])`` carries data, at ``t[0]``, to the base distribution, at ``t[-1]``, and back. Along a
    path ``d log p/dt = -tr(df/dz)``, so that with ``delta_logp = log p(end) - log p(start)`` of either direction

        ``z, delta_logp = forward(x)``, ``log p(x) = log p_base(z) - delta_logp``;
        ``x, delta_logp = inverse(z)``, ``log p(x) = log p_base(z) + delta_logp``.

    (The papers put the base at the earlier time: that is ``t=(1.0, 0.0)``.) With a random trace estimator (FFJORD:
    Grathwohl et al. 2019) ``delta_logp`` and ``log_prob`` are unbiased estimates, up to the solver's tolerance. The
    noise is drawn once for each solve and part of its arguments: adaptive steps and all sensitivity algorithms see one
    deterministic field.

    A conditional flow has a field with a third argument, ``f(t, z, context)`` (:class:`ConcatContext` puts the context
    beside the state); with an ``encoder`` it is data-controlled (Massaroli et al. 2020): ``context = encoder(data)``,
    evaluated once a solve. The density is then that of ``x`` given the context, which may not be computed from ``x``.

    Parameters
    ----------
    f : torch.nn.Module or callable
        The field, as for :class:`pynode.nn.log_density.LogDensity`: each element of a batch on its own, twice
        differentiable.
    event_shape : int or sequence of int
        Shape of one element, ``d`` or ``(channels, height, width)``.
    base : torch.distributions.Distribution, or module or callable that returns one, optional
        Its event shape is ``event_shape`` and its batch shape ``()`` (``torch.distributions.Independent`` makes it so).
        By default standard normal, in the precision of f's first parameter. A module may have parameters, or buffers
        that follow ``.to(...)``.
    trace : TraceEstimator
        ``ExactTrace()``, or ``HutchinsonTrace(...)`` for large dimensions.
    t : sequence of float, tensor, or torch.nn.Module
        Time of the data, then that of the base distribution, strictly monotone. A tensor that requires a gradient
        makes the depth learnable; a module (:class:`pynode.training.RandomEnd`) is called without arguments for them.
    encoder : torch.nn.Module or callable, optional
        What the context goes through before each solve, such as an embedding of labels.
    running_cost : callable, optional
        Integrated by :meth:`log_prob_and_cost`: :class:`KineticEnergy`, :class:`JacobianFrobenius` and the others of
        :mod:`pynode.training`, several of them as :class:`pynode.training.RunningCosts`; or any other callable
        ``l(t, (z, log_p), probes[, context])``. It is evaluated beside the field; a program for Julia has what the two
        share only once.
    algorithm, sensealg, rtol, atol, **options
        As for :func:`pynode.solve`.

    Raises
    ------
    InputError
        Naming the argument at fault.

    Examples
    --------
    >>> flow = pynode.nn.CNF(lambda t, z: -z, 2)  # shrinks the data to e^-1 of its size on its way to a standard normal
    >>> round(flow.log_prob(torch.zeros(1, 2)).item(), 3)  # -log(2 pi) - 2: the trace of -I is -2
    -3.838
    """

    def __init__(
        self,
        f: Callable[..., Any],
        event_shape: int | Sequence[int],
        *,
        base: Distribution | Callable[[], Distribution] | None = None,
        trace: TraceEstimator = ExactTrace(),  # noqa: B008  (immutable)
        t: Any = (0.0, 1.0),
        encoder: Callable[[Any], Tensor] | None = None,
        running_cost: Callable[..., Any] | None = None,
        algorithm: Algorithm | str = Tsit5(),  # noqa: B008  (immutable)
        sensealg: SensitivityAlgorithm | None = None,
        rtol: float = 1e-5,
        atol: float = 1e-7,
        **options: Any,
    ) -> None:
        super().__init__()
        if not callable(f):
            raise InputError(
                explain(f"f is a {type(f).__name__}", "a callable f(t, z[, context])", "pass a module or function")
            )
        self.event_shape = torch.Size([event_shape] if isinstance(event_shape, int) else event_shape)
        if not self.event_shape or min(self.event_shape) < 1:
            raise InputError(
                explain(f"event_shape is {event_shape!r}", "one or more positive dimensions", "give 1 for numbers")
            )
        if not isinstance(trace, TraceEstimator):
            raise InputError(
                explain(f"trace is {trace!r}", "a trace estimator object", "write ExactTrace() or HutchinsonTrace()")
            )
        self.field = LogDensity(f, len(self.event_shape))
        like = next((x for x in self.field.parameters() if x.is_floating_point()), torch.empty(0))
        self.base = StandardNormal(self.event_shape, like) if base is None else base
        self.trace = trace
        self.t = t
        self.encoder = encoder
        self.running_cost = running_cost
        self.algorithm = as_algorithm(algorithm, options.get("backend", "torch"))
        self.sensealg = sensealg
        self.rtol = rtol
        self.atol = atol
        self.options = options
        self.base_distribution()  # raises where it does not fit

    def forward(
        self, x: Tensor, context: Any = None, *, generator: torch.Generator | None = None, probes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """From data to base: ``z`` (batch..., event...) and ``delta_logp`` (batch...), see the class.

        Parameters
        ----------
        x : Tensor
            (batch..., event...); broadcast against the context's batch.
        context : optional
            (batch..., features), or what the encoder makes that of.
        generator : torch.Generator, optional
            Source of the trace estimator's noise, on the device of ``x``.
        probes : Tensor, optional
            The noise itself, of a call of :meth:`probes`, for several solves with the same.
        """
        return self._mapped(x, self._times(), context, generator, probes)

    def inverse(
        self, z: Tensor, context: Any = None, *, generator: torch.Generator | None = None, probes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """From base to data: ``x`` (batch..., event...) and ``delta_logp`` (batch...); arguments as for forward."""
        return self._mapped(z, self._reversed(), context, generator, probes)

    def log_prob(
        self, x: Tensor, context: Any = None, *, generator: torch.Generator | None = None, probes: Tensor | None = None
    ) -> Tensor:
        """``log p(x)``, or ``log p(x | context)``, (batch...); arguments as for :meth:`forward`."""
        z, delta = self.forward(x, context, generator=generator, probes=probes)
        return self._base_log_prob(z) - delta

    def log_prob_and_cost(
        self, x: Tensor, context: Any = None, *, generator: torch.Generator | None = None, probes: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """``log p(x)``, and the integral of the running cost over ``|dt|`` along the same solve."""
        cost = self.running_cost
        if cost is None:
            raise InputError(explain("this CNF has no running cost", "a running_cost=", "use log_prob, or give one"))
        sol = self.solve(
            x,
            None,
            context,
            generator=generator,
            probes=probes,
            running_cost=OnFlow(cost) if hasattr(cost, "flow_rate") else cost,
        )
        z, delta = _ends(sol)
        return self._base_log_prob(z) - delta, over_length(sol, cost)

    def sample(
        self,
        sample_shape: int | Sequence[int] = (),
        context: Any = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Samples (sample_shape..., context's batch..., event...), without a gradient; no trace is evaluated."""
        with torch.no_grad():
            z, features = self._drawn(sample_shape, context, generator, "sample")
            sol = self._solve(self.field.f, z, self._reversed(), features)
        x: Tensor = sol.ys[-1]
        return x

    def rsample_and_log_prob(
        self,
        sample_shape: int | Sequence[int] = (),
        context: Any = None,
        *,
        generator: torch.Generator | None = None,
        probes: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Reparametrised samples, functions of the parameters through the flow, and their log-densities, in one solve.

        Parameters
        ----------
        sample_shape : int or sequence of int
        context : optional
            With a batch of contexts, ``sample_shape`` samples for each: its batch shape follows ``sample_shape``.
        generator : torch.Generator, optional
            Source of the samples and of the trace estimator's noise.
        probes : Tensor, optional

        Returns
        -------
        x : Tensor
            (sample_shape..., context's batch..., event...)
        log_prob : Tensor
            (sample_shape..., context's batch...)
        """
        z, features = self._drawn(sample_shape, context, generator, "rsample")
        x, delta = _ends(self._augmented(z, self._reversed(), features, generator, probes, None))
        return x, self._base_log_prob(z) + delta

    def solve(
        self,
        start: Tensor,
        ts: Any = None,
        context: Any = None,
        *,
        generator: torch.Generator | None = None,
        probes: Tensor | None = None,
        running_cost: Callable[..., Any] | None = None,
    ) -> Solution:
        """The :class:`pynode.Solution` of ``(z, log_p - log p(start))`` at ``ts``, by default the module's ``t``."""
        start, features = self._together(start, context)
        return self._augmented(start, self._times() if ts is None else ts, features, generator, probes, running_cost)

    def probes(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """What the trace is taken with for states like ``x`` (batch..., event...): see :mod:`pynode.nn.trace`."""
        return self.trace.probes(x, len(self.event_shape), generator)

    def base_distribution(self) -> Distribution:
        """The base distribution.

        Raises
        ------
        InputError
            If it is none, or its shape is not that of one element.
        """
        base = self.base if isinstance(self.base, Distribution) else self.base()
        if not isinstance(base, Distribution):
            came, remedy = f"a {type(base).__name__}", "pass one of torch.distributions"
        elif base.event_shape == self.event_shape and not base.batch_shape:
            return base
        else:
            came = f"a distribution of event shape {tuple(base.event_shape)}, batch shape {tuple(base.batch_shape)}"
            remedy = "wrap it in torch.distributions.Independent, which turns batch into event dimensions"
        raise InputError(
            explain(f"base is {came}", f"a distribution of event shape {tuple(self.event_shape)}, batch ()", remedy)
        )

    def extra_repr(self) -> str:
        listed = self.t.tolist() if isinstance(self.t, Tensor) else self.t
        t = "" if isinstance(listed, torch.nn.Module) else f"t={list(listed)}, "
        return (
            f"event_shape={tuple(self.event_shape)}, trace={self.trace}, {t}algorithm={self.algorithm.name}, "
            f"rtol={self.rtol:g}, atol={self.atol:g}"
        )

    def _mapped(
        self, start: Tensor, ts: Any, context: Any, generator: torch.Generator | None, probes: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return _ends(self.solve(start, ts, context, generator=generator, probes=probes))

    def _augmented(
        self,
        start: Tensor,
        ts: Any,
        features: tuple[Tensor, ...],
        generator: torch.Generator | None,
        probes: Tensor | None,
        running_cost: Callable[..., Any] | None,
    ) -> Solution:
        log_p = start.new_zeros(start.shape[: start.ndim - len(self.event_shape)])
        noise = self.probes(start.detach(), generator) if probes is None else probes
        return self._solve(self.field, (start, log_p), ts, (noise, *features), running_cost)

    def _solve(
        self, f: Callable[..., Any], y0: Any, ts: Any, args: tuple[Any, ...], running_cost: Any = None
    ) -> Solution:
        return solve(
            f,
            y0,
            ts,
            args=args,
            algorithm=self.algorithm,
            sensealg=self.sensealg,
            rtol=self.rtol,
            atol=self.atol,
            running_cost=running_cost,
            **self.options,
        )

    def _base_log_prob(self, z: Tensor) -> Tensor:
        density: Tensor = self.base_distribution().log_prob(z)
        return density

    def _times(self) -> Any:
        return self.t() if isinstance(self.t, torch.nn.Module) else self.t

    def _reversed(self) -> Any:
        t = self._times()
        return t.flip(0) if isinstance(t, Tensor) else list(t)[::-1]

    def _features(self, context: Any) -> Tensor | None:
        if context is None:
            return None
        features = context if self.encoder is None else self.encoder(context)
        if not isinstance(features, Tensor) or features.ndim == 0:
            raise InputError(
                explain(
                    f"the context is {features!r}"
                    if not isinstance(features, Tensor)
                    else "the context is a 0-dim tensor",
                    "a tensor (batch..., features)",
                    "unsqueeze it, or give an encoder= that makes features of it",
                )
            )
        return features

    def _together(self, start: Tensor, context: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """State and context broadcast to one batch shape."""
        lead = start.ndim - len(self.event_shape) if isinstance(start, Tensor) else -1
        if lead < 0 or start.shape[lead:] != self.event_shape or not start.is_floating_point():
            came = f"a {start.dtype} tensor of shape {tuple(start.shape)}" if isinstance(start, Tensor) else repr(start)
            raise InputError(
                explain(
                    f"the state is {came}",
                    f"a real floating point tensor (batch..., {', '.join(map(str, self.event_shape))})",
                    "reshape or convert it, or change event_shape=",
                )
            )
        features = self._features(context)
        if features is None:
            return start, ()
        batch = start.shape[:lead]
        try:
            together = torch.broadcast_shapes(batch, features.shape[:-1])  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise InputError(
                explain(
                    f"the context has the batch shape {tuple(features.shape[:-1])}",
                    f"one that broadcasts against that of the state, {tuple(batch)}",
                    "give one context, or one for each element",
                )
            ) from error
        return start.expand(*together, *self.event_shape), (features.expand(*together, -1),)

    def _drawn(
        self, sample_shape: int | Sequence[int], context: Any, generator: torch.Generator | None, how: str
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """A draw of the base distribution by its method ``how``, and the context's features beside it."""
        shape = [sample_shape] if isinstance(sample_shape, int) else list(sample_shape)
        features = self._features(context)
        base = self.base_distribution()
        if how == "rsample" and not base.has_rsample:
            raise InputError(
                explain(
                    f"base is a {type(base).__name__}, which has no rsample",
                    "a base distribution that can be reparametrised",
                    "use sample, and log_prob of the samples",
                )
            )
        whole = torch.Size([*shape, *([] if features is None else features.shape[:-1])])
        z: Tensor = _seeded(lambda: getattr(base, how)(whole), generator)
        return z, () if features is None else (features.expand(*shape, *features.shape),)


def _ends(sol: Solution) -> tuple[Tensor, Tensor]:
    z, log_p = sol.ys
    return z[-1], log_p[-1]


def _seeded(draw: Callable[[], Tensor], generator: torch.Generator | None) -> Tensor:
    """``draw()`` by a generator, which distributions do not take: torch's own state is set from it and put back."""
    if generator is None:
        return draw()
    seed = torch.randint(2**63 - 1, (), generator=generator, device=generator.device).item()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(seed))
        return draw()
