"""A module evaluated with other parameters than its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def swapped(module: torch.nn.Module, parameters: Mapping[str, Tensor]) -> torch.nn.Module:
    """A twin of ``module`` with ``parameters``, by name, in the place of its own; all else is shared.

    ``torch.func.functional_call`` would put them into the module itself for the time of the call, where a solve in
    another thread would find them.
    """
    named = dict(module.named_parameters())
    return _twin(module, {id(named[name]): tensor for name, tensor in parameters.items()})


def _twin(module: torch.nn.Module, tensors: Mapping[int, Tensor]) -> torch.nn.Module:
    own = vars(module)
    twin: torch.nn.Module = object.__new__(type(module))
    vars(twin).update(
        own,
        _parameters={name: tensors.get(id(x), x) for name, x in own["_parameters"].items()},
        _modules={name: None if child is None else _twin(child, tensors) for name, child in own["_modules"].items()},
    )
    return twin
