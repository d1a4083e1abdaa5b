"""A field that does what it should, but for one of its calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Mine(Exception):
    """The user's own."""


class MineAbove(BaseException):
    """One that ``except Exception`` does not see."""


class MineRuntime(RuntimeError):
    """torch's own errors are of this class."""


def _raising(error: Callable[[], BaseException]) -> Callable[..., Any]:
    def fault(field: Faulty, t: Tensor, y: Any, rate: Any) -> Any:
        field.raised = error()
        raise field.raised

    return fault


def _mapped(change: Callable[[Tensor], Any]) -> Callable[..., Any]:
    def fault(field: Faulty, t: Tensor, y: Any, rate: Any) -> Any:
        if isinstance(rate, dict):
            return {key: change(x) for key, x in rate.items()}
        return change(rate)

    return fault


def _write_state(field: Faulty, t: Tensor, y: Any, rate: Any) -> Any:
    with torch.no_grad():
        for leaf in y.values() if isinstance(y, dict) else (y,):
            leaf.mul_(0.5)
    return rate


def _write_parameters(field: Faulty, t: Tensor, y: Any, rate: Any) -> Any:
    with torch.no_grad():
        field.base.w.mul_(1.25)
    return rate


def _wrong_tree(field: Faulty, t: Tensor, y: Any, rate: Any) -> Any:
    return {"other": rate}


#: Exceptions, each of which has to come out as the very object that was raised.
RAISES: dict[str, Callable[..., Any]] = {
    "exception": _raising(lambda: Mine("mine")),
    "base exception": _raising(lambda: MineAbove("mine")),
    "runtime error": _raising(lambda: MineRuntime("mine")),
    "stop iteration": _raising(lambda: StopIteration("mine")),
    "generator exit": _raising(lambda: GeneratorExit("mine")),
    "system exit": _raising(lambda: SystemExit(3)),
    "keyboard interrupt": _raising(lambda: KeyboardInterrupt("mine")),
    "out of memory": _raising(lambda: torch.OutOfMemoryError("mine")),
    "memory error": _raising(lambda: MemoryError("mine")),
    "type error": _raising(lambda: TypeError("mine")),
    "attribute error": _raising(lambda: AttributeError("mine")),
    "not implemented": _raising(lambda: NotImplementedError("mine")),
}

#: What is returned, or done, instead: an error in words, or numbers that are right all the same.
VALUES: dict[str, Callable[..., Any]] = {
    "nan": _mapped(lambda x: x * float("nan")),
    "inf": _mapped(lambda x: x + float("inf")),
    "wrong shape": _mapped(lambda x: torch.cat([x, x])),
    "broadcastable shape": _mapped(lambda x: x.reshape(-1)[:1].squeeze()),
    "none": _mapped(lambda x: None),
    "float": _mapped(lambda x: 1.0),
    "numpy": _mapped(lambda x: x.detach().numpy()),
    "wrong tree": _wrong_tree,
    "float32": _mapped(lambda x: x.float()),
    "complex": _mapped(lambda x: x + 0j),
    "integers": _mapped(lambda x: x.detach().long()),
    "meta": _mapped(lambda x: x.to("meta")),
    "sparse": _mapped(lambda x: x.detach().to_sparse()),
    "written state": _write_state,
    "written parameters": _write_parameters,
}


class Base(nn.Module):
    """``y' = tanh(w y) + cos(t) b``, for a tensor ``y`` (..., 2) or ``{"a": (..., 2), "b": (..., 2)}``."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[-0.3, 1.4], [-1.1, 0.2]], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([0.2, -0.4], dtype=torch.float64))

    def rate(self, t: Tensor, y: Tensor) -> Tensor:
        t = t[:, None] if t.ndim == 1 else t  # of rows of a tree
        return torch.tanh(y @ self.w.t()) + torch.cos(t) * self.b

    def forward(self, t: Tensor, y: Any, *args: Any) -> Any:
        if isinstance(y, dict):
            return {"a": self.rate(t, y["a"]) - y["b"], "b": 0.5 * y["a"]}
        return self.rate(t, y)


class Faulty(nn.Module):
    """``base``, whose call number ``at`` (from 1; none by default) is given to ``fault(field, t, y, rate)``."""

    def __init__(self, base: nn.Module, fault: Callable[..., Any] | None = None, at: int = 0) -> None:
        super().__init__()
        self.base, self.fault, self.at = base, fault, at
        self.calls = 0
        self.raised: BaseException | None = None

    def forward(self, t: Tensor, y: Any, *args: Any) -> Any:
        self.calls += 1
        rate = self.base(t, y, *args)
        if self.calls == self.at and self.fault is not None:
            return self.fault(self, t, y, rate)
        return rate
