"""Why a field cannot be captured, with the operator and the user's line."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.traceback import set_stack_trace
from torch.overrides import TorchFunctionMode

from pynode.errors import UnsupportedError, explain

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_TORCH = os.path.dirname(torch.__file__) + os.sep
_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
#: Files of pynode that stand between the tracer and the user's field.
_OWN = tuple(
    os.path.join(_HERE, name)
    for name in ("problem.py", "layout.py", "running_cost.py", "capture" + os.sep, "julia" + os.sep)
)


class NotCapturable(UnsupportedError):
    """The field cannot be turned into a graph that holds for all states, times and parameters."""


def source_line(node: fx.Node) -> str:
    """`` at file:line`` of the user's code a node stems from, or nothing."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    return _where(frames)


def _where(frames: list[tuple[str, str]]) -> str:
    users = [(file, line) for file, line in frames if not _between(file)]
    return f" at {users[-1][0]}:{users[-1][1]}" if users else ""


class _Lines(TorchFunctionMode):
    """Notes the user's line of every torch function that is called, for the nodes that are traced from it."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        frame = sys._getframe(1)
        while frame.f_back is not None and _between(frame.f_code.co_filename):
            frame = frame.f_back
        set_stack_trace([f'File "{frame.f_code.co_filename}", line {frame.f_lineno}'])
        return func(*args, **(kwargs or {}))


def located(field: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The field, so that nodes traced from it know their line."""

    def call(t: Tensor, u: Tensor) -> Tensor:
        with _Lines():
            result = field(t, u)
        set_stack_trace([])
        return result

    return call


def _between(file: str) -> bool:
    return file.startswith((_TORCH, *_OWN, "<")) or os.sep + "contextlib" in file


def check_trace(traced: fx.GraphModule) -> None:
    """Raise NotCapturable for operators that draw random numbers, and for values that Python took."""
    for node in traced.graph.nodes:
        if node.target is torch.ops.aten._local_scalar_dense.default or _symbolic(node.meta.get("val")):
            what = "takes a number out of a tensor (.item(), float())" if not _symbolic_shape(node) else "has a shape"
            raise NotCapturable(
                explain(
                    f"f {what} that depends on data ({node.target}{source_line(node)})",
                    "an f that does not depend on data but through tensor operators",
                    "leave numbers in their tensors (t * y, not t.item() * y), select with torch.where",
                )
            )
        if isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags:
            if node.target is torch.ops.aten.native_dropout.default and node.args[2] is False:
                continue
            raise NotCapturable(
                explain(
                    f"f draws random numbers ({node.target}{source_line(node)})",
                    "an f that has one value for each time and state",
                    "call .eval(), or draw the noise outside and pass it through args=",
                )
            )


def _symbolic(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_symbolic, value))
    if isinstance(value, torch.Tensor):
        return not all(isinstance(n, int) for n in value.shape)
    return isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool)


def _symbolic_shape(node: fx.Node) -> bool:
    return node.target is not torch.ops.aten._local_scalar_dense.default


_DATA = (
    torch._subclasses.fake_tensor.DataDependentOutputException,
    torch._subclasses.fake_tensor.DynamicOutputShapeException,
    torch._subclasses.fake_tensor.UnsupportedOperatorException,
)
_VALUES = re.compile(r"get value out of a tracing tensor|data.dependent|\.numpy\(\) is not supported|NumPy|numpy")


def refusal_of(error: Exception) -> NotCapturable | None:
    """NotCapturable for an exception that tracing raised; None for the field's own exceptions."""
    frames = [(frame.filename, str(frame.lineno)) for frame in traceback.extract_tb(error.__traceback__)]
    where = _where(frames)
    message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, NotCapturable):
        return error
    if isinstance(error, _DATA) or _VALUES.search(str(error)):
        func = getattr(error, "func", None)
        what = f" ({func})" if func is not None else f" ({message})"
        return NotCapturable(
            explain(
                f"f needs a value while it is traced{what}{where}",
                "an f whose path does not depend on data (if y.sum() > 0, .item(), numpy, y[y > 0])",
                "write it with torch.where and tensor operators, or use the callback route",
            )
        )
    if _of_torch(error):
        return NotCapturable(
            explain(
                f"f cannot be traced: {type(error).__name__}: {message}{where}",
                "an f of torch operators on tensors",
                "use the callback route",
            )
        )
    return None


def _of_torch(error: Exception) -> bool:
    """Whether the tracer may have raised this: a class of the user's own, or memory that ran out, is no refusal."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    of_torch = type(error).__module__.partition(".")[0] == "torch"
    return of_torch or type(error) in (RuntimeError, NotImplementedError, TypeError, AssertionError)
