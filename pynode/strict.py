"""Warnings, and ``with pynode.strict():``, under which each of them is an error."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from contextlib import ContextDecorator

import torch

from pynode.errors import PynodeWarning, StrictError

#: Read once: ``PYNODE_STRICT=1`` makes a whole process strict.
_ALWAYS = os.environ.get("PYNODE_STRICT", "0") not in ("", "0")
#: Files that no user wrote.
_OURS = (os.path.dirname(__file__) + os.sep, os.path.dirname(torch.__file__) + os.sep)
_LOCK = threading.Lock()
_entered = 0


class strict(ContextDecorator):
    """Within it, or within a function decorated with it, what would be a warning of pynode raises StrictError.

    It holds for the whole process, other threads included, since gradients of CUDA tensors are computed in threads of
    torch's own. ``PYNODE_STRICT=1`` in the environment does the same from the first import on.

    Examples
    --------
    >>> y0 = torch.ones(1)
    >>> with pynode.strict():
    ...     try:  # float32 times are 64 apart there
    ...         pynode.solve(lambda t, y: torch.cos(t - 1e9) * y, y0, [1e9, 1e9 + 1])
    ...     except pynode.StrictError as error:
    ...         print(error)
    f depends on time, and torch.float32 times near t = 1e+09 are 64 apart. Rounding them changes the ...
    """

    def __enter__(self) -> strict:
        global _entered
        with _LOCK:
            _entered += 1
        return self

    def __exit__(self, *_: object) -> None:
        global _entered
        with _LOCK:
            _entered -= 1


def is_strict() -> bool:
    """Whether warnings are errors now."""
    return _ALWAYS or _entered > 0


def warn(message: str, category: type[PynodeWarning] = PynodeWarning) -> None:
    """The one way in which pynode warns: at the line of the user's that led here.

    Raises
    ------
    StrictError
        Instead, where :func:`is_strict`.
    """
    if is_strict():
        raise StrictError(message, category)
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
