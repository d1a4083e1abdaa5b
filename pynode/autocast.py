"""Mixed precision: ``f`` runs in the one the problem was stated under, the solver's own arithmetic in the state's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from pynode.layout import leaves_of, rebuild
from pynode.matmul_precision import MatmulPrecision

_available = functools.cache(torch.amp.is_autocast_available)


class Autocast:
    """The mixed precision a problem was stated under, for every evaluation of ``f``, those of the backward pass
    included, wherever and whenever it runs.

    Sums of stages, error norms, interpolants and linear solves are the solver's, whose tolerance means nothing if they
    are rounded to bfloat16 (on CUDA autocast would do that to every matrix-vector product). So ``autocast()`` is the
    context of a solve: autocast is off in it, and ``torch.float32`` products are as exact as they were where the
    problem was stated. :meth:`around` turns autocast on again for one call of the user's.

    Parameters
    ----------
    device : str
        Type of the state's device.
    dtype : torch.dtype
        The state's real dtype.
    """

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self.device = device
        self.available = _available(device)
        self.enabled = self.available and torch.is_autocast_enabled(device)
        self.dtype = torch.get_autocast_dtype(device) if self.available else None
        self.state_dtype = dtype
        self.matmul = MatmulPrecision()

    @property
    def eps(self) -> float:
        """Relative rounding of what ``f`` returns."""
        own = torch.finfo(self.state_dtype).eps
        return max(own, torch.finfo(self.dtype).eps) if self.enabled and self.dtype is not None else own

    def __call__(self) -> AbstractContextManager[Any]:
        casting = self.available and torch.is_autocast_enabled(self.device)
        if self.matmul.holds():
            return torch.autocast(self.device, enabled=False) if casting else nullcontext()
        return self._restored(casting)

    @contextmanager
    def _restored(self, casting: bool) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(self.matmul.restored())
            if casting:
                stack.enter_context(torch.autocast(self.device, enabled=False))
            yield

    def around(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """``f`` under the autocast of the problem, if there is any."""
        return Autocasted(f, self) if self.enabled else f


class Autocasted:
    """A function of the user's under autocast. Values of autocast's dtype become float32 where the state is."""

    def __init__(self, f: Callable[..., Any], autocast: Autocast) -> None:
        self.f = f
        self._device, self._dtype = autocast.device, autocast.dtype
        self._widens = autocast.state_dtype == torch.float32

    def __call__(self, *args: Any) -> Any:
        # The cache of casts would hand copies of parameters made without a tape to evaluations that need one.
        with torch.autocast(self._device, dtype=self._dtype, cache_enabled=False):
            value = self.f(*args)
        if not self._widens:
            return value
        if isinstance(value, Tensor):
            return self._wide(value)
        return rebuild(value, iter([self._wide(leaf) for _, leaf in leaves_of(value)]))

    def _wide(self, leaf: Any) -> Any:
        return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype is self._dtype else leaf
