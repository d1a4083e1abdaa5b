"""diffrax on a case, jitted: one compilation for all tolerances and weights."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from pynode.bench.fields import Case
from pynode.bench.peers.contestant import tensors
from pynode.bench.peers.jax_fields import jax_field
from pynode.errors import SolveError
from pynode.solution import ReturnCode

#: Steps that its arrays are made for. Its memory and time grow with their square root only.
MAX_STEPS = 4096


@contextlib.contextmanager
def precision(dtype: torch.dtype) -> Iterator[None]:
    """jax on the CPU inside, in float64 where ``dtype`` is: it keeps float32 only unless told so, process-wide."""
    import jax

    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", dtype is torch.float64)
    try:
        with jax.default_device(jax.devices("cpu")[0]):
            yield
    finally:
        jax.config.update("jax_enable_x64", before)


class Diffrax:
    """``diffrax.diffeqsolve`` with Dopri5, differentiated by its RecursiveCheckpointAdjoint.

    Arrays are jax's own, so that no crossing is counted against it.
    """

    def __init__(self, max_steps: int = MAX_STEPS) -> None:
        self.max_steps = max_steps
        self._compiled: dict[tuple[Any, ...], tuple[Any, Any]] = {}

    def forward(self, case: Case) -> Callable[[], Any]:
        """The jitted solve, ready."""
        return self._prepared(case, 0)

    def gradient(self, case: Case) -> Callable[[], Any]:
        """The jitted gradient, ready."""
        return self._prepared(case, 1)

    def temporary_bytes(self, case: Case) -> int:
        """Memory that the compiled gradient takes beyond its inputs and results, by XLA's own account."""
        solve = self._functions(case)[1]
        compiled = solve.lower(*self._arguments(case)).compile()
        return int(compiled.memory_analysis().temp_size_in_bytes)

    def _prepared(self, case: Case, which: int) -> Callable[[], Any]:
        import jax

        check_field(case)
        solve, arguments = self._functions(case)[which], self._arguments(case)
        ended = self._functions(case)[0](*arguments)[1]
        if int(ended) != 0:
            raise SolveError(f"diffrax did not reach the end within {self.max_steps} steps", ReturnCode.MaxIters, 0.0)

        def run() -> Any:
            result = jax.block_until_ready(solve(*arguments))
            return result[0] if which == 0 else [result[0], *result[1]]

        return run

    def _functions(self, case: Case) -> tuple[Any, Any]:
        key = (case.name, case.title, case.y0.shape, case.y0.dtype, tuple(case.t.tolist()))
        if key not in self._compiled:
            self._compiled[key] = _compile(case, self.max_steps)
        return self._compiled[key]

    @staticmethod
    def _arguments(case: Case) -> tuple[Any, ...]:
        import jax.numpy as jnp

        weights = [jnp.asarray(x.detach().numpy()) for x in case.field.parameters()]
        return jnp.asarray(case.y0.detach().numpy()), weights, case.rtol, case.atol


def _compile(case: Case, max_steps: int) -> tuple[Any, Any]:
    import diffrax
    import jax

    field = jax_field(case.field)
    t0, t1 = case.t.tolist()

    def solve(y0: Any, p: Any, rtol: Any, atol: Any) -> tuple[Any, Any]:
        found = diffrax.diffeqsolve(
            *(diffrax.ODETerm(field), diffrax.Dopri5(), t0, t1, None, y0, p),
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
            max_steps=max_steps,
            throw=False,  # a check inside the graph would cost it time: the outcome is looked at once, beforehand
        )
        return found.ys[0], found.result._value

    def loss(y0: Any, p: Any, rtol: Any, atol: Any) -> Any:
        return (solve(y0, p, rtol, atol)[0] ** 2).sum()

    return jax.jit(solve), jax.jit(jax.grad(loss, argnums=(0, 1)))


def check_field(case: Case) -> None:
    """Raise AssertionError where the field in jax is not the case's: a comparison would be of two problems."""
    import jax.numpy as jnp

    weights = [jnp.asarray(x.detach().numpy()) for x in case.field.parameters()]
    y0, t = case.y0.detach(), case.t[-1]
    [theirs] = tensors(jax_field(case.field)(jnp.asarray(t.numpy()), jnp.asarray(y0.numpy()), weights))
    with torch.no_grad():
        ours = case.field(t, y0)
    gap = (theirs - ours).norm() / ours.norm()
    if not gap <= 1e3 * torch.finfo(y0.dtype).eps:
        raise AssertionError(f"the field of {case.name} in jax differs from torch's by {gap:.1e}")


@functools.cache
def shared() -> Diffrax:
    """One for the process: it keeps what it compiled."""
    return Diffrax()
