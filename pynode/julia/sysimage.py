"""Which system image Julia starts with: ``pynode-sysimage.json`` in the Julia project, from ``pynode julia setup``.

Its keys: ``path`` of the image; ``julia`` and ``manifest``, the version of Julia and the SHA-256 of ``Manifest.toml``
it was built with. Julia must not start with an image of other packages than those of its project: the image counts
only as long as both are the same. ``PYTHON_JULIACALL_SYSIMAGE`` goes before it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

_NAME = "pynode-sysimage.json"


def record(project: Path, image: Path, version: str) -> None:
    """Write down that ``image`` was built for this project and version of Julia."""
    contents = {"path": str(image), "julia": version, "manifest": _digest(project)}
    (project / _NAME).write_text(json.dumps(contents, indent=4) + "\n")


def forget(project: Path) -> None:
    """Start with Julia's own image again."""
    (project / _NAME).unlink(missing_ok=True)


def exists(project: Path) -> bool:
    """Whether anything is written down."""
    return (project / _NAME).is_file()


def recorded(project: Path, version: str) -> Path | None:
    """The image to start with, or None: there is none, or the project or Julia have changed since."""
    return None if why_not(project, version) else Path(json.loads((project / _NAME).read_text())["path"])


def why_not(project: Path, version: str) -> str | None:
    """Why there is no image to start with; None where there is one."""
    try:
        contents = json.loads((project / _NAME).read_text())
        path, julia, manifest = Path(contents["path"]), contents["julia"], contents["manifest"]
    except FileNotFoundError:
        return "none was built"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{project / _NAME} cannot be read"
    if not path.is_file():
        return f"{path} is gone"
    if julia != version:
        return f"it was built with Julia {julia}"
    if manifest != _digest(project):
        return "packages have changed since it was built"
    return None


def _digest(project: Path) -> str:
    manifest = project / "Manifest.toml"
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else ""
