"""The step-size controllers that :mod:`pynode.bench.controllers` compares: the library's, and the literature's."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pynode.controllers import START, History, IController, PIDController, PredictiveController


@dataclass(frozen=True)
class Shrinking(PIDController):
    """A filter that may follow an accepted step by a smaller one, as its authors have it: without the floor of 1.

    ``deadzone``: a step that would grow by less is followed by an equal one.
    """

    deadzone: float = 1.0

    def propose(self, ratio: float, order: int, history: History) -> tuple[bool, float, History]:
        """See :class:`pynode.controllers.PIDController`; after an acceptance the factor may be below 1."""
        accepted, factor, now = super().propose(ratio, order, history)
        if accepted:
            factor = min(self.factormax, max(self.factormin, self.safety * self._filter(now[0], order, history)))
            if 1.0 <= factor < self.deadzone:
                factor = 1.0
        return accepted, factor, now


@dataclass(frozen=True)
class H211b(PIDController):
    """Soederlind's H211b: ``factor = safety * (r_n r_(n-1))^(1/(b k)) (h_n / h_(n-1))^(-1/b)``."""

    b: float = 4.0

    def propose(self, ratio: float, order: int, history: History) -> tuple[bool, float, History]:
        """See :class:`pynode.controllers.PIDController`; ``history``: the last reciprocal ratio, and what the step
        size was multiplied by since."""
        before, growth = (1.0, 1.0) if history is START else history
        if not ratio <= 1.0:  # also NaN
            factor = self.factormin
            if math.isfinite(ratio):
                factor = min(self.safety, max(self.factormin, self.safety * ratio ** (-1.0 / order)))
            return False, factor, (before, growth * factor)
        reciprocal = 1.0 / ratio if ratio > 1e-10 else 1e10
        factor = self.safety * (reciprocal * before) ** (1.0 / (self.b * order)) * growth ** (-1.0 / self.b)
        factor = min(self.factormax, max(self.factormin, factor))
        return True, factor, (reciprocal, factor)


_I = Shrinking(pcoeff=0.0, icoeff=1.0)

#: Coefficients are in the terms of PIDController: ``r_n^((p+i+d)/k) r_(n-1)^(-(p+2d)/k) r_(n-2)^(d/k)``.
CONTROLLERS: dict[str, PIDController] = {
    "I": IController(),  # the first one is what the others are compared with
    "I, factormax 5": IController(factormax=5.0),
    "I, factormax 2": IController(factormax=2.0),
    "I, safety 0.8": IController(safety=0.8),
    "I, safety 0.95": IController(safety=0.95),
    "I, shrinking": _I,
    "I, shrinking, dead zone 1.2": replace(_I, deadzone=1.2),
    "I, shrinking, safety 0.8": replace(_I, safety=0.8),
    "I, shrinking, safety 0.95": replace(_I, safety=0.95),
    "PI 0.04 (Hairer, Wanner)": Shrinking(pcoeff=0.2, icoeff=0.65),
    "PI 0.04, floor 1": PIDController(pcoeff=0.2, icoeff=0.65),
    "PI 3.4 (Gustafsson)": Shrinking(pcoeff=0.4, icoeff=0.3),
    "PI 4.2 (Soederlind)": Shrinking(pcoeff=0.2, icoeff=0.4),
    "PIController()": PIDController(pcoeff=0.4, icoeff=0.3),
    "H211 PI": Shrinking(pcoeff=-1 / 6, icoeff=1 / 3),
    "H211b": H211b(),
    "H312 PID": Shrinking(pcoeff=-2 / 9, icoeff=2 / 9, dcoeff=1 / 18),
    "PI 0.04, safety 0.8": Shrinking(pcoeff=0.2, icoeff=0.65, safety=0.8),
    "predictive": PredictiveController(deadband=1.0),
    "predictive, dead zone 1.2": PredictiveController(),
    "predictive, safety 0.8": PredictiveController(deadband=1.0, safety=0.8),
}
