"""Fields that capture has to refuse, and a word that its message has to contain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from fields import Draw, Made
from torch import Tensor, nn


def _branch_on_the_state(t: Tensor, y: Tensor) -> Tensor:
    return -y if y.sum() > 0 else y


def _branch_on_the_time(t: Tensor, y: Tensor) -> Tensor:
    return -y if t < 1.0 else y


def _item(t: Tensor, y: Tensor) -> Tensor:
    return y * y.mean().item()


def _float_of_time(t: Tensor, y: Tensor) -> Tensor:
    return y * float(t)


def _numpy(t: Tensor, y: Tensor) -> Tensor:
    return y + torch.from_numpy(y.detach().numpy() ** 2)


def _loop_on_the_state(t: Tensor, y: Tensor) -> Tensor:
    while y.norm() > 1:
        y = y / 2
    return y


def _noise(t: Tensor, y: Tensor) -> Tensor:
    return y + torch.randn_like(y)


def _as_many_as_positive(t: Tensor, y: Tensor) -> Tensor:
    return y * y[y > 0].sum()


def _other_precision(t: Tensor, y: Tensor) -> Tensor:
    return (y.float().sin() * y.double()).to(y.dtype)


def _real(f: Callable[[Tensor, Tensor], Tensor]) -> Callable[[torch.dtype], Made]:
    return lambda dtype: Made(f, Draw(dtype).normal(4))


def _complex(dtype: torch.dtype) -> Made:
    return Made(lambda t, y: 1j * y, Draw(dtype).normal(4).to(dtype.to_complex()))


def _training(layer: Callable[[], nn.Module]) -> Callable[[torch.dtype], Made]:
    def make(dtype: torch.dtype) -> Made:
        draw = Draw(dtype)
        net: Any = draw.module(layer).train()
        return Made(lambda t, y: net(y), draw.normal(4, 3))

    return make


#: Makers of the fields, with the word.
REFUSED: dict[str, tuple[Callable[[torch.dtype], Made], str]] = {
    "branch_on_the_state": (_real(_branch_on_the_state), "does not depend on data"),
    "branch_on_the_time": (_real(_branch_on_the_time), "does not depend on data"),
    "loop_on_the_state": (_real(_loop_on_the_state), "does not depend on data"),
    "item": (_real(_item), "item"),
    "float_of_time": (_real(_float_of_time), "item"),
    "numpy": (_real(_numpy), "numpy"),
    "noise": (_real(_noise), "random"),
    "as_many_as_positive": (_real(_as_many_as_positive), "does not depend on data"),
    "other_precision": (_real(_other_precision), "precision"),
    "complex_state": (_complex, "complex"),
    "dropout_in_training": (_training(lambda: nn.Dropout(0.5)), "random"),
    "batch_norm_in_training": (_training(lambda: nn.BatchNorm1d(3)), "running statistics"),
}
