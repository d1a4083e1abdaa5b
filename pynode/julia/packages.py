"""The Julia packages pynode declares, and those it asks for on request."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: The file juliapkg finds in the installed package.
DECLARATION = Path(__file__).resolve().parent.parent / "juliapkg.json"


@dataclass(frozen=True)
class Package:
    """A Julia package: its identifier and the versions that will do."""

    name: str
    uuid: str
    version: str


def _family(version: str, **uuids: str) -> tuple[Package, ...]:
    return tuple(Package(f"OrdinaryDiffEq{name}", uuid, version) for name, uuid in uuids.items())


#: What ``pynode julia setup --with NAME`` adds, by name.
EXTRAS: dict[str, tuple[Package, ...]] = {
    "flux": (
        Package("ComponentArrays", "b0b7db55-cfe3-40fc-9ded-d10e2dbeff66", "0.15.37"),
        Package("DiffEqFlux", "aae7a2af-3d4f-5e19-a356-7da93b79d9d0", "4.8"),
        Package("Lux", "b2108857-7c20-44ae-9111-449ecde12c47", "1.29"),
        Package("Optimisers", "3bd65402-5787-11e9-1adc-39752487f4e2", "0.4.7"),
        Package("Zygote", "e88e6eb3-aa80-5325-afca-941959d7151f", "0.7.10"),
    ),
    "cuda": (Package("CUDA", "052768ef-5323-5732-b1bb-66c8b64840ba", "5.4, 6"),),
    "ensembles": (
        Package("DiffEqGPU", "071ae1c0-96b5-11e9-1965-c90190d839ea", "3.13"),
        Package("KernelAbstractions", "63c18a36-062a-441e-b654-da1e3ab1ce7c", "0.9, 0.10"),
        Package("StaticArrays", "90137ffa-7385-5640-81b9-e52037218182", "1.9"),
    ),
    "algorithms": _family(
        "2",
        AdamsBashforthMoulton="89bda076-bce5-4f1c-845f-551c83cdda9a",
        Extrapolation="becaefa8-8ca2-5cf9-886d-c06f3d2bd2c4",
        Feagin="101fe9f7-ebb6-4678-b671-3a81e7194747",
        Nordsieck="c9986a66-5c92-4813-8696-a7ec84c806c8",
        PDIRK="5dd0a6cf-3d4b-4314-aa06-06d4e299bc89",
        SSPRK="669c94d9-1f4b-4b64-b377-1aa079aa2388",
        StabilizedRK="358294b1-0aab-51c3-aafe-ad5ab194a2ad",
    )
    + _family("3", LowStorageRK="b0944070-b475-4768-8dec-fb6eb410534d"),
}


def declared() -> dict[str, Any]:
    """The contents of ``juliapkg.json``: ``julia``, the versions that will do, and ``packages`` by name."""
    contents: dict[str, Any] = json.loads(DECLARATION.read_text())
    return contents


def package_folder() -> Path:
    """Where the Julia package PyNode is: ``juliaenv/`` of a checkout, or inside the installed pynode."""
    path: str = declared()["packages"]["PyNode"]["path"]
    return (DECLARATION.parent / path).resolve()
