"""A training step by diffrax on the device that torch uses."""

from __future__ import annotations

from typing import Any

import torch

from pynode.bench.fields import Case
from pynode.bench.packages import missing
from pynode.bench.peers.jax_fields import jax_field


def jax_device_absent(device: torch.device) -> str | None:
    """None where diffrax is here and jax has such a device, else what is lacking."""
    lacking = missing("diffrax", "jax")
    if lacking is not None:
        return lacking
    import jax

    try:
        jax.devices("gpu" if device.type == "cuda" else "cpu")
    except RuntimeError:
        return "jax sees no GPU"
    return None


class DiffraxStep:
    """Calls make one jitted step each: solve, gradient of ``mean(y(t[-1])**2)``, descent."""

    def __init__(self, case: Case, device: torch.device, rate: float) -> None:
        import diffrax
        import jax
        import jax.numpy as jnp

        field = jax_field(case.field)
        t0, t1 = case.t.tolist()
        place = jax.devices("gpu" if device.type == "cuda" else "cpu")[device.index or 0]
        self._weights = [jax.device_put(x.detach().numpy(), place) for x in case.field.parameters()]
        self._y0 = jax.device_put(case.y0.numpy(), place)

        def loss(p: Any, y0: Any) -> Any:
            found = diffrax.diffeqsolve(
                *(diffrax.ODETerm(field), diffrax.Dopri5(), t0, t1, None, y0, p),
                stepsize_controller=diffrax.PIDController(rtol=case.rtol, atol=case.atol),
            )
            return jnp.mean(found.ys[0] ** 2)

        def step(p: Any, y0: Any) -> Any:
            value, slopes = jax.value_and_grad(loss)(p, y0)
            return value, [x - rate * g for x, g in zip(p, slopes, strict=True)]

        self._step = jax.jit(step)

    def __call__(self) -> Any:
        import jax

        value, self._weights = jax.block_until_ready(self._step(self._weights, self._y0))
        return value
