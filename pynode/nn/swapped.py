"""A module evaluated with other parameters than its own."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

#: functional_call puts the tensors into the module for the time of the call: one thread after the other.
_SWAPPING = threading.RLock()


def swapped(module: torch.nn.Module, parameters: Mapping[str, Tensor], *args: Any) -> Any:
    """``module(*args)`` with ``parameters`` in the place of its own."""
    with _SWAPPING:
        return torch.func.functional_call(module, dict(parameters), args)
