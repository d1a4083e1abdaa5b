"""Linear interpolation."""

from __future__ import annotations

from torch import Tensor

from pynode.controls.control import Control
from pynode.controls.observations import Observations


class LinearControl(Control):
    """Straight lines between the observed values of each channel (Kidger et al. 2020, Morrill et al. 2021).

    The derivative is piecewise constant and jumps at the knots, which are in ``jumps``. On ``[t_i, t_i+1]`` the path
    depends on the data up to ``t_i+1``; where a value is missing at ``t_i+1``, on the next one of that channel.

    Parameters
    ----------
    ts : Tensor
        (T,), strictly increasing.
    x : Tensor
        (batch..., T, channels), NaN where missing. A channel keeps its first value before it, its last value after
        it, and is zero where it has none.

    Raises
    ------
    InputError
        For shapes or dtypes that do not fit.

    References
    ----------
    Morrill, Kidger, Yang and Lyons (2021), "Neural Controlled Differential Equations for Online Prediction Tasks".
    """

    def __init__(self, ts: Tensor, x: Tensor) -> None:
        observations = Observations(ts, x)
        _, slopes = observations.steps()
        super().__init__(ts, observations.on_grid(slopes))
