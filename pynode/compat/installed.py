"""``import torchdiffeq`` meaning pynode's drop-in, in this process.

    import pynode.compat.installed as installed

    installed.as_torchdiffeq()
    import torchdiffeq  # pynode.compat.torchdiffeq

For code that cannot be edited, and for torchdiffeq's own tests (``python -m pynode.bench torchdiffeq-suite``).
"""

from __future__ import annotations

import sys
from types import ModuleType

from pynode.compat import torchdiffeq
from pynode.errors import UnsupportedError, explain

#: Modules of torchdiffeq whose public functions are imported from by their full names.
_SUBMODULES = ("torchdiffeq._impl", "torchdiffeq._impl.odeint", "torchdiffeq._impl.adjoint")


def as_torchdiffeq() -> None:
    """Enter ``pynode.compat.torchdiffeq`` as ``torchdiffeq`` in ``sys.modules``.

    Raises
    ------
    UnsupportedError
        If torchdiffeq itself has been imported: whoever holds its functions would go on with them, unnoticed.
    """
    held = sys.modules.get("torchdiffeq")
    if held is torchdiffeq:
        return
    if held is not None:
        raise UnsupportedError(
            explain(
                f"torchdiffeq was imported already, from {getattr(held, '__file__', None)}",
                "a process in which it was not",
                "call as_torchdiffeq() before the first import of torchdiffeq",
            )
        )
    sys.modules["torchdiffeq"] = torchdiffeq
    for name in _SUBMODULES:
        module = ModuleType(name, f"Names of {name} that pynode.compat.torchdiffeq offers.")
        for public in torchdiffeq.__all__:
            setattr(module, public, getattr(torchdiffeq, public))
        sys.modules[name] = module
