"""Continuous paths through irregular, incomplete time series, for controlled differential equations.

A series is ``ts`` (T,), strictly increasing, and ``x`` (batch..., T, channels), in which NaN marks what is missing.
Series observed at different times share one grid in either of two ways: the union of all times
(:func:`on_shared_times`), NaN where a sample has no observation; or their own row numbers as the grid, padded with NaN,
each sample's times being a channel, since a controlled equation does not change under reparametrisation of time.
"""

from pynode.controls.channels import with_counts, with_time
from pynode.controls.control import Control
from pynode.controls.hermite import HermiteControl
from pynode.controls.linear import LinearControl
from pynode.controls.log_signature import LogSignatureControl
from pynode.controls.natural import NaturalCubicControl
from pynode.controls.rectilinear import RectilinearControl
from pynode.controls.shared_times import on_shared_times

__all__ = [
    "Control",
    "HermiteControl",
    "LinearControl",
    "LogSignatureControl",
    "NaturalCubicControl",
    "RectilinearControl",
    "on_shared_times",
    "with_counts",
    "with_time",
]
