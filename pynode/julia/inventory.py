"""What there is of Julia on this machine. Looks only; starts nothing but ``julia --version``."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from pynode.julia import sysimage
from pynode.julia.packages import EXTRAS, declared


def version_of(distribution: str) -> str | None:
    """The installed version of a Python package."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


#: Without these there is no solve and no gradient; without others, some algorithms are not there.
_CORE = {"PyNode", "SciMLSensitivity"}


@dataclass
class Inventory:
    """What was found.

    Attributes
    ----------
    juliacall, juliapkg : str or None
        Versions.
    executable, version : str or None
        The Julia that would be started.
    project : Path or None
        The Julia project it would be started with.
    resolved : bool
        The project is as juliapkg wants it: nothing happens before Julia starts.
    offline : bool
        juliapkg may not download.
    packages : dict
        Versions of all packages in the project, by name.
    trouble : str
        What juliapkg could not do.
    """

    juliacall: str | None = None
    juliapkg: str | None = None
    executable: str | None = None
    version: str | None = None
    project: Path | None = None
    resolved: bool = False
    offline: bool = False
    packages: dict[str, str] = field(default_factory=dict)
    trouble: str = ""

    @property
    def ready(self) -> bool:
        """Whether Julia can be started, and without a download."""
        there = self.juliacall is not None and self.version is not None and self.packages.keys() >= _CORE
        return there and not self.downloads

    @property
    def missing(self) -> list[str]:
        """Declared packages that the project does not have."""
        return [name for name in declared()["packages"] if name not in self.packages]

    @property
    def downloads(self) -> list[str]:
        """What the first use of Julia would download."""
        if self.juliacall is None or self.offline or self.resolved:
            return []
        found = [] if self.version else [f"Julia ({declared()['julia']} or later)"]
        changed = ["the registry, and versions of packages that have changed"]
        return found + ([f"{name}.jl and what it needs" for name in self.missing] or changed)

    @property
    def extras(self) -> list[str]:
        """The names of ``pynode julia setup --with`` whose packages are all there."""
        return [name for name, packages in EXTRAS.items() if all(p.name in self.packages for p in packages)]

    @property
    def image(self) -> str:
        """The system image, in words."""
        chosen = os.environ.get("PYTHON_JULIACALL_SYSIMAGE")
        if chosen:
            return f"{chosen} (PYTHON_JULIACALL_SYSIMAGE)"
        if self.project is None or self.version is None:
            return "Julia's own"
        image, reason = sysimage.recorded(self.project, self.version), sysimage.why_not(self.project, self.version)
        return f"Julia's own ({reason})" if image is None else str(image)


def take() -> Inventory:
    """Look around."""
    found = Inventory(juliacall=version_of("juliacall"), juliapkg=version_of("juliapkg"))
    executable, project = os.environ.get("PYTHON_JULIACALL_EXE"), os.environ.get("PYTHON_JULIACALL_PROJECT")
    if executable and project:  # juliacall does not ask juliapkg then
        found.executable, found.project, found.resolved = executable, Path(project), True
    elif found.juliapkg is not None:
        _ask_juliapkg(found)
    if found.executable is None:
        found.executable = os.environ.get("PYTHON_JULIAPKG_EXE") or shutil.which("julia")
    if found.executable is not None:
        found.version = julia_version(found.executable)
    if found.project is not None:
        found.packages = packages_in(found.project)
    return found


def _ask_juliapkg(found: Inventory) -> None:
    import juliapkg
    from juliapkg.state import STATE

    found.project = Path(STATE["project"])
    found.offline = bool(juliapkg.offline(None))
    try:
        found.resolved = found.project.is_dir() and bool(juliapkg.resolve(dry_run=True))
        if found.resolved:
            found.executable = juliapkg.executable()
    except Exception as error:  # whatever is wrong with the project is what the user asks about
        found.trouble = f"{type(error).__name__}: {error}"


def choose_image() -> None:
    """Have juliacall, not imported yet, start Julia with the image of ``pynode julia setup --sysimage`` while it fits.

    What the user chose with environment variables of juliacall goes before it.
    """
    if any(f"PYTHON_JULIACALL_{name}" in os.environ for name in ("SYSIMAGE", "EXE", "PROJECT")):
        return
    from juliapkg.state import STATE

    project = Path(STATE["project"])
    if not sysimage.exists(project):
        return
    found = take()
    image = None if found.version is None else sysimage.recorded(project, found.version)
    if found.resolved and image is not None:
        os.environ["PYTHON_JULIACALL_SYSIMAGE"] = str(image)


def julia_version(executable: str) -> str | None:
    """What ``julia --version`` says; None if that is no Julia."""
    try:
        said = subprocess.run([executable, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.fullmatch(r"julia version (\S+)", said.strip())
    return match.group(1) if match else None


def packages_in(project: Path) -> dict[str, str]:
    """Names and versions in a project's manifest; ``"stdlib"`` where the version is Julia's."""
    for name in ("JuliaManifest.toml", "Manifest.toml"):
        if (project / name).is_file():
            break
    else:
        return {}
    packages: dict[str, str] = {}
    current = None
    # A table of tables with plain strings: Python 3.10 has no reader of TOML.
    for line in (project / name).read_text().splitlines():
        header = re.fullmatch(r"\[\[(?:deps\.)?([^.\]]+)\]\]", line.strip())
        value = re.fullmatch(r'version = "(.*)"', line)
        if header:
            current = header.group(1)
            packages[current] = "stdlib"
        elif value and current:
            packages[current] = value.group(1)
    return packages
