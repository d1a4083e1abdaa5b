"""Which step-size controller a solve gets that does not name one."""

from __future__ import annotations

from pynode.algorithms import BS3, DP5, DP8, Algorithm, Implicit, Tsit5, Vern7
from pynode.controllers import IController, PIDController, PredictiveController


def default_controller(algorithm: Algorithm) -> PIDController:
    """What costs least at equal error on DETEST for the explicit methods for which that was measured
    (``python -m pynode.bench controllers``), and for implicit ones; the elementary controller for all others."""
    predictive = isinstance(algorithm, Implicit | BS3 | DP5 | DP8 | Tsit5 | Vern7)
    return PredictiveController() if predictive else IController()
