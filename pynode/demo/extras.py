"""The optional packages of the demo, asked for before any work starts."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

from pynode.errors import MissingPackageError, explain

#: Import name -> the name it is installed by.
PACKAGES: dict[str, str] = {
    "rich": "rich",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "matplotlib": "matplotlib",
}


def require(modules: Iterable[str]) -> None:
    """Raise MissingPackageError, naming all that are missing, unless every module of ``PACKAGES`` named is there."""
    missing = [PACKAGES[module] for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingPackageError(
            explain(
                f"not installed: {', '.join(missing)}",
                "the optional packages of the demo",
                "pip install 'pynode[demo]'",
            )
        )
