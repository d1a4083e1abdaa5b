"""Which step-size controller a solve gets that does not name one."""

from __future__ import annotations

from pynode.algorithms import FBDF, VCABM, Algorithm, AutoSwitch, Stabilized
from pynode.controllers import IController, PIDController, PredictiveController


def default_controller(algorithm: Algorithm) -> PIDController:
    """What costs least at equal error on DETEST where that was measured (``python -m pynode.bench controllers``), and
    the elementary controller where the order or the number of stages changes with the step."""
    varying = isinstance(algorithm, VCABM | FBDF | Stabilized | AutoSwitch)
    return IController() if varying else PredictiveController()
