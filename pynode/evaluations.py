"""What an evaluation of a field must not do, and when it did it: for the messages of FieldError."""

from __future__ import annotations

import contextlib
from typing import Any

from torch import Tensor

from pynode.errors import FieldError, explain


def versions(x: Tensor) -> int:
    """How often a tensor has been written into; -1 where torch does not count."""
    return -1 if x.is_inference() else x._version


def changed_input() -> FieldError:
    """The error of a field that wrote into the state it was given."""
    return FieldError(
        explain(
            "f changed its input y in place",
            "f to leave y alone: the solver still needs that state",
            "work on y.clone(), or use the operators without a trailing underscore",
        )
    )


def packed(layout: Any, t: Any, derivative: Any) -> Tensor:
    """What a field returned at ``t``, flat."""
    try:
        flat: Tensor = layout.pack_derivative(derivative)
        return flat
    except FieldError as error:
        located(error, t)
        raise


def located(error: FieldError, t: Any) -> None:
    """Tell an error at what time(s) the field was called, if that can be read."""
    if type(t) is not Tensor:
        return
    with contextlib.suppress(RuntimeError):  # inside a transform
        error.at(t.detach().reshape(-1).tolist())


def written(error: RuntimeError, what: str) -> str | None:
    """What to say where torch refuses to differentiate ``what``, as f wrote into what its derivative needs; None where
    torch refuses for another reason."""
    said = str(error)
    if "modified by an inplace operation" not in said and "has been modified inplace" not in said:
        return None
    return explain(
        f"{what} changed a tensor in place that its derivative needs ({said})",
        "f to leave y, its parameters and its own intermediate values alone",
        "use the operators without a trailing underscore in f",
    )
