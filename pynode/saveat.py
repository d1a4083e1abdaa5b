"""What a solve keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SaveAt:
    """What ``Solution`` holds.

    Parameters
    ----------
    ts : 1-D tensor or sequence of float, optional
        Times at which ``ys`` is given, within the span of ``t`` and in its direction; ``t`` itself by default.
        With it, ``t`` says only where the solve starts and ends.
    steps : bool
        Give ``ys`` at the start and at the end of every accepted step instead.
    dense : bool, optional
        Keep the accepted states, one per step, so that ``sol(t)`` works afterwards. By default they are kept except
        under ``BacksolveAdjoint`` and ``ReversibleAdjoint``, whose memory is constant, and under
        ``CheckpointedAdjoint(checkpoints=n)``, which keeps at most ``n`` of them and recomputes the others.
    """

    ts: torch.Tensor | Sequence[float] | None = None
    steps: bool = False
    dense: bool | None = None
