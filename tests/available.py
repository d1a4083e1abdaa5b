"""Which sensitivity algorithms the torch backend has, asked of the backend: new ones join the tests by themselves."""

from __future__ import annotations

import pytest

import pynode
from pynode.backends import backend_from_name
from pynode.sensealg_names import SENSEALGS

AVAILABLE = {
    cls.__name__: cls() for cls in SENSEALGS if backend_from_name("torch").supports(pynode.Tsit5(), cls()) is None
}
each_available = pytest.mark.parametrize("sensealg", AVAILABLE.values(), ids=AVAILABLE)

#: Those that the torch backend has for some algorithm, if not for Tsit5.
OF_TORCH = [cls for cls in SENSEALGS if cls is not pynode.GaussKronrodAdjoint]
