"""Who takes part: pynode's tiers and every library that is installed, all with Dormand and Prince's 5(4)."""

from __future__ import annotations

from collections.abc import Sequence

import pynode
from pynode.backends import backend_from_name
from pynode.bench.contestants import Pynode, TorchDiffEq
from pynode.bench.packages import missing
from pynode.bench.peers.contestant import Contestant, differentiating, solving
from pynode.bench.peers.diffrax_solver import shared
from pynode.bench.peers.scipy_solver import scipy_solve
from pynode.bench.peers.torch_solvers import TorchDyn, TorchOde

#: ``compile=`` by tier.
TIERS: dict[str, bool | str] = {"eager": False, "step": "step", "solve": "solve"}

#: What each library needs; Julia is asked of its backend.
NEEDS = {
    "torchdiffeq": ("torchdiffeq",),
    "torchode": ("torchode",),
    "torchdyn": ("torchdyn", "torchcde"),
    "diffrax": ("diffrax", "jax"),
    "scipy": ("scipy",),
}


def ours(tier: str) -> str:
    """Name of a tier's row."""
    return f"pynode {tier}"


def absent() -> dict[str, str]:
    """Libraries that cannot take part, and why."""
    found = {name: why for name, modules in NEEDS.items() if (why := missing(*modules)) is not None}
    julia = backend_from_name("julia").absent()
    return found if julia is None else {**found, "julia": julia}


def tier_solver(tier: str) -> Pynode:
    """pynode's solve in a tier."""
    chosen = TIERS[tier]
    return Pynode(algorithm=pynode.DP5(), compile=chosen) if chosen else Pynode(algorithm=pynode.DP5())


def line_up(differentiated: bool, tiers: Sequence[str], left_out: Sequence[str]) -> list[Contestant]:
    """The contestants of a solve or of a gradient; ``left_out`` names libraries that do not take part."""
    make = differentiating if differentiated else solving
    found = [make(ours(tier), tier_solver(tier)) for tier in tiers]
    peers: dict[str, list[Contestant]] = {}
    if differentiated:
        peers["torchdiffeq"] = [
            differentiating("torchdiffeq odeint_adjoint", TorchDiffEq("odeint_adjoint")),
            differentiating("torchdiffeq odeint, backprop", TorchDiffEq()),
        ]
        peers["torchode"] = [differentiating("torchode, backprop", TorchOde())]
        peers["torchdyn"] = [differentiating("torchdyn, backprop", TorchDyn())]
        peers["diffrax"] = [Contestant("diffrax RecursiveCheckpointAdjoint", shared().gradient)]
        gauss = Pynode(algorithm=pynode.DP5(), backend="julia", sensealg=pynode.GaussAdjoint())
        peers["julia"] = [differentiating("julia GaussAdjoint", gauss)]
    else:
        peers["torchdiffeq"] = [solving("torchdiffeq", TorchDiffEq())]
        peers["torchode"] = [solving("torchode", TorchOde())]
        peers["torchdyn"] = [solving("torchdyn", TorchDyn())]
        peers["diffrax"] = [Contestant("diffrax", shared().forward)]
        peers["scipy"] = [Contestant("scipy RK45", scipy_solve)]
        peers["julia"] = [solving("julia", Pynode(algorithm=pynode.DP5(), backend="julia"))]
    return found + [one for name, ones in peers.items() if name not in left_out for one in ones]
