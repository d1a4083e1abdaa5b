"""What the Julia backend remembers of a solve."""

from __future__ import annotations

from typing import Any

import torch

from pynode.backends import Request
from pynode.errors import foreign_stays
from pynode.julia.crossing import CallbackError, Reply
from pynode.julia.routes import Route
from pynode.julia.runtime import Julia
from pynode.solution import ReturnCode


class JuliaRecord:
    """A solve in Julia: its request, how it ended, its saved values, and the number Julia knows it by."""

    #: Of the step that would be next: Julia chooses it anew.
    size: float | None = None

    def __init__(self, request: Request, engine: Julia, route: Route) -> None:
        self._request = request
        self.engine, self.route = engine, route
        self.stats, self.device = request.stats, request.problem.layout.device
        self.solution = 0
        self.parameters = route.vector()
        self.retcode = ReturnCode.Success
        self.t = request.problem.times[0]
        self.end = torch.empty(0)
        self.detail = ""
        self.values = torch.empty(0)
        self.saved: list[float] = []
        self.steps = 0

    def __reduce__(self) -> Any:
        raise foreign_stays()

    @property
    def request(self) -> Request:
        """What was asked."""
        return self._request

    def kept(self) -> int:
        """Julia's number of the solution, with dense output."""
        return self.solution

    def __del__(self) -> None:
        if getattr(self, "solution", 0):
            self.engine.drop(self.solution)

    def call(self, name: str, *args: Any) -> Reply:
        """A crossing that may evaluate the field."""
        self.route.prepare()
        synchronize(self.device)
        try:
            return self.engine.call(name, *args)
        except CallbackError:
            raise self.route.failed() from None


def synchronize(device: torch.device) -> None:
    """Wait for torch's work on a device, before another runtime touches its memory."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def device_number(device: torch.device) -> int:
    """As in juliaenv/src/solving.jl."""
    return 0 if device.type == "cpu" else 1
