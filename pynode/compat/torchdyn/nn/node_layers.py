"""Augmentation, and layers that append the time or the control."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pynode.compat.torchdyn.ambient import current
from pynode.errors import InputError, explain
from pynode.nn import Augment, InputLayer


class Augmenter(torch.nn.Module):
    """More dimensions: zeros, or a function of the input (:class:`pynode.nn.Augment`, :class:`pynode.nn.InputLayer`).

    Parameters
    ----------
    augment_idx : int
        The dimension of the features.
    augment_dims : int
        Number of zeros, where there is no ``augment_func``.
    augment_func : callable, optional
        What it returns is appended instead.
    order : "first" or "last"
        Before or behind the input.
    """

    def __init__(
        self,
        augment_idx: int = 1,
        augment_dims: int = 5,
        augment_func: Callable[[Tensor], Tensor] | None = None,
        order: str = "first",
    ) -> None:
        super().__init__()
        if order not in ("first", "last"):
            raise InputError(explain(f"order = {order!r}", "'first' or 'last'", "choose one of them"))
        self.augment_idx, self.augment_dims, self.order = augment_idx, augment_dims, order
        self.augment_func = augment_func

    def forward(self, x: Tensor) -> Tensor:
        """``x`` with more features along ``augment_idx``."""
        if self.augment_func is None:
            grown = Augment(self.augment_dims, dim=self.augment_idx)(x)
        else:
            grown = InputLayer(self.augment_func, keep=True, dim=self.augment_idx)(x)
        assert isinstance(grown, Tensor)
        if self.order == "last":
            return grown
        size = x.shape[self.augment_idx]
        return torch.cat(
            [
                grown.narrow(self.augment_idx, size, grown.shape[self.augment_idx] - size),
                grown.narrow(self.augment_idx, 0, size),
            ],
            dim=self.augment_idx,
        )


class DepthCat(torch.nn.Module):
    """Appends the time of the evaluation along dimension ``idx_cat``; ``pynode.nn.ConcatTime`` gets it as an argument.

    Parameters
    ----------
    idx_cat : int
    """

    def __init__(self, idx_cat: int = 1) -> None:
        super().__init__()
        self.idx_cat = idx_cat

    def forward(self, x: Tensor) -> Tensor:
        """``x`` with one more feature."""
        shape = list(x.shape)
        shape[self.idx_cat] = 1
        return torch.cat([x, current("DepthCat").t.to(x).expand(shape)], dim=self.idx_cat)


class DataControl(torch.nn.Module):
    """Appends the initial state of the solve along dimension 1; ``pynode.nn.DataControl`` gets it as an argument."""

    _control: Tensor | None = None  # by this name torchdyn knows who wants it

    def forward(self, x: Tensor) -> Tensor:
        """``x`` with the control's features behind it."""
        control = current("DataControl").control
        if control is None:
            raise InputError(
                explain(
                    "DataControl has no control", "a solve, which knows its input", "write model.vf(t, x, control=x0)"
                )
            )
        return torch.cat([x, control.to(x)], dim=1)
