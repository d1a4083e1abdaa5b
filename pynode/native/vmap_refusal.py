"""What ``torch.vmap`` raises for functions that it cannot batch, told from what the functions raise themselves."""

from __future__ import annotations

from pynode.errors import FieldError, PynodeError

#: torch has no class of its own for its refusals, and code that is not made for batches fails in these ways, too.
_OF_TORCH = (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError, AttributeError, AssertionError)


def refuses(error: Exception) -> bool:
    """Whether an exception out of ``torch.vmap(f)`` may be torch's. One of a class of the user's, or of the system's
    (TimeoutError, MemoryError), or torch's own for exhausted memory, is not."""
    if isinstance(error, FieldError):  # f may have written into what the next try would start from
        return False
    return type(error) in _OF_TORCH or isinstance(error, PynodeError)
