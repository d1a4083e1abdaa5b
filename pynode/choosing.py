"""Which sensitivity algorithm a solve gets that does not name one. All the rules stand here.

1. Inside a transform of ``torch.func`` or a dual level: ``DirectAdjoint``, the one that torch can transform.
2. While ``STEPS`` states fit into a quarter of the device's free memory: ``CheckpointedAdjoint()``, exact, with one
   state kept for every step.
3. Otherwise, with an algorithm that can be run backward step by step: ``ReversibleAdjoint()``, in constant memory.
   Where memory is no issue it is not chosen, because running backward gathers rounding, on dissipative fields much
   of it; the same algorithm under ``CheckpointedAdjoint`` does not.
4. Otherwise ``CheckpointedAdjoint(max_memory=...)`` with that quarter as its bound: exact too, what does not fit being
   computed again.

With ``backend="julia"`` the choice is ``GaussAdjoint()``, the one that SciML recommends for ODEs: the parameters'
gradient is a quadrature, and an implicit method meets only the state's Jacobian. The torch backend needs no rule for
stiff problems: its implicit steps are differentiated exactly, too. There the continuous adjoints and forward
sensitivities are never chosen: their gradients are those of the exact solution, to a tolerance.
"""

from __future__ import annotations

import os

import torch

from pynode.algorithms import Algorithm, Reversible, Symplectic
from pynode.problem import ODEProblem
from pynode.sensealg import (
    CheckpointedAdjoint,
    DirectAdjoint,
    GaussAdjoint,
    ReversibleAdjoint,
    SensitivityAlgorithm,
)

STEPS = 1000
"""So many states have to fit. The number of steps is not known before the solve; this is a long one."""

SMALL = 2**28
"""Bytes of ``STEPS`` states below which the memory is not even looked at, so that choosing costs nothing."""


def choose(
    problem: ODEProblem,
    algorithm: Algorithm,
    *,
    transformed: bool = False,
    backend: str = "torch",
) -> SensitivityAlgorithm:
    """The sensitivity algorithm for a solve that does not name one, by the rules of this module.

    Parameters
    ----------
    problem : ODEProblem
    algorithm : Algorithm
    transformed : bool
        A transform of ``torch.func`` is active.
    backend : str
    """
    if backend == "julia":
        return GaussAdjoint()
    if transformed:
        return DirectAdjoint()
    wanted = STEPS * problem.layout.size * problem.layout.dtype.itemsize
    if wanted <= SMALL:
        return CheckpointedAdjoint()
    free = free_memory(problem.layout.device)
    if free is None or wanted <= free // 4:
        return CheckpointedAdjoint()
    if isinstance(algorithm, Reversible | Symplectic):
        return ReversibleAdjoint()
    return CheckpointedAdjoint(max_memory=max(free // 4, 1))


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device, None where the machine does not tell. Limits of a container are not seen."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch's allocator holds without using it is free for us as well.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    try:
        with open("/proc/meminfo") as lines:  # Linux: counts what the page cache would give back
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows, macOS
        return None
