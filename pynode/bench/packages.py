"""Which of the libraries that are compared with are here, and in which versions."""

from __future__ import annotations

import importlib.metadata
import importlib.util

#: Distributions whose versions matter to a timing.
NAMES = ("torch", "numpy", "scipy", "torchdiffeq", "torchode", "torchdyn", "jax", "jaxlib", "diffrax", "juliacall")


def versions() -> dict[str, str]:
    """Version of each by name, ``"absent"`` where there is none."""
    found = {}
    for name in NAMES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def missing(*modules: str) -> str | None:
    """None where every module can be imported, else which cannot."""
    lacking = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"{', '.join(lacking)} not installed" if lacking else None
