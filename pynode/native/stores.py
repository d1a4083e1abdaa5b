"""What keeps the states of a solve."""

from __future__ import annotations

from pynode.backends import Request
from pynode.errors import InputError, explain
from pynode.native.checkpoints import Binomial, EveryStep, Thinned
from pynode.native.methods import carries
from pynode.sensealg import BacksolveAdjoint, CheckpointedAdjoint, DirectAdjoint, ReversibleAdjoint


def store_for(request: Request) -> EveryStep | None:
    """What keeps the states that dense output and the sensitivity algorithm need."""
    sensealg = request.sensealg if request.differentiable else None
    if getattr(sensealg, "checkpointing", False):
        return Thinned()
    if isinstance(sensealg, DirectAdjoint) and request.problem.cost_layout is not None:
        return EveryStep()  # the tape holds the states anyway, and the cost of a solve that fails is read from them
    if not isinstance(sensealg, CheckpointedAdjoint):
        flat_memory = isinstance(sensealg, BacksolveAdjoint | ReversibleAdjoint)
        keep = request.dense if request.dense is not None else not flat_memory
        return EveryStep() if keep else None
    bound = sensealg.checkpoints
    if sensealg.max_memory is not None:
        layout, algorithm = request.problem.layout, request.algorithm
        vectors = 1 + carries(algorithm)
        size = vectors * layout.size * layout.dtype.itemsize
        bound = int(sensealg.max_memory // size)
        if bound < 2:
            raise InputError(
                explain(
                    f"CheckpointedAdjoint(max_memory={sensealg.max_memory}), where what {algorithm.name} starts a step "
                    f"from takes {size} bytes",
                    f"room for two, {2 * size} bytes",
                    f"raise max_memory to {2 * size} or more",
                )
            )
    # One place is that of the state at hand.
    return EveryStep() if bound is None else Binomial(int(bound) - 1)
