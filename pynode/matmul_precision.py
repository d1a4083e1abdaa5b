"""How exact products of float32 matrices are (TF32, bfloat16): process-wide settings of torch's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

#: What torch >= 2.9 sets apart.
_PLACES = (("cuda", "matmul"), ("cuda", "conv"), ("cuda", "rnn"), ("mkldnn", "matmul"), ("mkldnn", "conv"))


class MatmulPrecision:
    """The settings where this object was made.

    A backward pass repeats evaluations of ``f``; were they made to another precision than in the forward solve, they
    would not be those that are to be differentiated. The settings are global: another thread sees what
    :meth:`restored` restores for as long as it lasts.
    """

    def __init__(self) -> None:
        self._found = _read()

    def holds(self) -> bool:
        """Whether the settings are these."""
        return _read() == self._found

    @contextmanager
    def restored(self) -> Iterator[None]:
        """These settings, for a while."""
        now = _read()
        _write(self._found)
        try:
            yield
        finally:
            _write(now)


def _read() -> tuple[Any, ...]:
    """Matrix products and cuDNN's convolutions as the older interface has them; where a program uses the newer one,
    which forbids the older, every place by itself."""
    try:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return tuple(torch._C._get_fp32_precision_getter(*place) for place in _PLACES)


def _write(settings: tuple[Any, ...]) -> None:
    if len(settings) == len(_PLACES):
        for place, value in zip(_PLACES, settings, strict=True):
            torch._C._set_fp32_precision_setter(*place, value)
        return
    torch.set_float32_matmul_precision(settings[0])
    torch.backends.cudnn.allow_tf32 = settings[1]
