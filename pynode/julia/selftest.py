"""``python -m pynode.julia.selftest BACKEND``: a solve and a gradient with a known answer, timed; prints JSON."""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any

import torch

import pynode


def check(backend: str) -> dict[str, Any]:
    """Solve ``y' = -k y`` from 1 to ``t = 1`` and differentiate with respect to ``k`` and ``y(0)``, twice.

    Returns
    -------
    dict
        ``error``, the largest absolute error of value and gradients; ``first`` and ``second``, seconds.
    """
    seconds = []
    error = 0.0
    for _ in range(2):
        began = time.perf_counter()
        k = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        y0 = torch.ones(1, dtype=torch.float64, requires_grad=True)
        sensealg = pynode.GaussAdjoint()
        solved = pynode.solve(
            lambda t, y, k: -k * y, y0, [0.0, 1.0], args=(k,), rtol=1e-8, atol=1e-10, backend=backend, sensealg=sensealg
        )
        end = solved.ys[-1].sum()
        wanted = (math.exp(-2.0), -math.exp(-2.0), math.exp(-2.0))
        for actual, expected in zip((end, *torch.autograd.grad(end, [k, y0])), wanted, strict=True):
            error = max(error, abs(float(actual.detach().sum()) - expected))
        seconds.append(time.perf_counter() - began)
    return {"error": error, "first": seconds[0], "second": seconds[1]}


#: Ten times what the tolerances of :func:`check` allow a few dozen steps.
TOLERANCE = 1e-6


if __name__ == "__main__":
    print(json.dumps(check(sys.argv[1])))
