"""Ways to differentiate a case: every sensitivity algorithm of every backend and tier, and the peers'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pynode
from pynode.backends import backend_from_name
from pynode.bench.contestants import Pynode, TorchDiffEq
from pynode.bench.fields import Case
from pynode.bench.peers.contestant import Contestant, differentiating
from pynode.bench.peers.diffrax_solver import Diffrax
from pynode.bench.peers.line_up import TIERS
from pynode.bench.peers.torch_solvers import TorchDyn
from pynode.bench.work_precision import FEW, SENSEALGS
from pynode.live_bytes import peak_during

#: Of these pynode has compiled steps and pullbacks.
COMPILED = ("CheckpointedAdjoint", "GaussAdjoint", "QuadratureAdjoint")

#: Steps that diffrax's arrays are made for: the long horizon has some 10 000.
MAX_STEPS = 32_768


@dataclass(frozen=True)
class WayToDifferentiate:
    """``peak(case, call)`` is the most bytes alive during the ready ``call``; None where that cannot be seen."""

    contestant: Contestant
    peak: Callable[[Case, Callable[[], Any]], int] | None


def _seen(case: Case, call: Callable[[], Any]) -> int:
    return peak_during(call)


def ways(case: Case, tiers: Sequence[str], left_out: Sequence[str]) -> list[WayToDifferentiate]:
    """All that there are for a case; ``left_out`` names libraries that do not take part."""
    inputs = case.y0.numel() + sum(p.numel() for p in case.field.parameters())
    found = []
    for tier in tiers:
        for name, make in SENSEALGS.items():
            if (tier != "eager" and name not in COMPILED) or (name == "ForwardSensitivity" and inputs > FEW):
                continue
            options: dict[str, Any] = {"compile": TIERS[tier]} if tier != "eager" else {}
            solver = Pynode(algorithm=pynode.DP5(), sensealg=make(), **options)
            contestant = differentiating(f"torch {tier} {name}", solver)
            # What compiled code allocates does not pass through torch's dispatcher.
            found.append(WayToDifferentiate(contestant, _seen if tier == "eager" else None))
    if "julia" not in left_out:
        backend = backend_from_name("julia")
        for name, make in SENSEALGS.items():
            if backend.supports(pynode.DP5(), make()) is None:
                solver = Pynode(algorithm=pynode.DP5(), backend="julia", sensealg=make())
                found.append(WayToDifferentiate(differentiating(f"julia {name}", solver), None))
    if "torchdiffeq" not in left_out:
        for title, function in (("odeint_adjoint", "odeint_adjoint"), ("odeint, backprop", "odeint")):
            one = differentiating(f"torchdiffeq {title}", TorchDiffEq(function))
            found.append(WayToDifferentiate(one, _seen))
    if "torchdyn" not in left_out:
        found.append(WayToDifferentiate(differentiating("torchdyn, backprop", TorchDyn()), _seen))
    if "diffrax" not in left_out:
        diffrax = Diffrax(MAX_STEPS)
        one = Contestant("diffrax RecursiveCheckpointAdjoint", diffrax.gradient)
        found.append(WayToDifferentiate(one, lambda case, call: diffrax.temporary_bytes(case)))
    return found
