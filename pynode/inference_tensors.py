"""Tensors made under ``torch.inference_mode()``: what cannot be differentiated through them is refused in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pynode.errors import UnsupportedError, explain


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Around evaluations of ``f`` under autograd, which ``what`` needs.

    Raises
    ------
    UnsupportedError
        Where ``f`` uses inference tensors, which autograd refuses to save.
    """
    try:
        yield
    except RuntimeError as error:
        if "Inference tensors cannot be saved" not in str(error):
            raise
        raise UnsupportedError(
            explain(
                f"f uses tensors made under torch.inference_mode(), through which {what} cannot be taken",
                "parameters and buffers made outside of it (the solve itself may run in it)",
                "build or load the model outside of inference_mode; or solve under no_grad by an explicit method, or "
                "with jac=",
            )
        ) from error
