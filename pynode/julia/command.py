"""``pynode julia setup``: everything the Julia backend needs, installed and compiled beforehand."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pynode.errors import MissingPackageError, UnsupportedError, explain
from pynode.julia import inventory, sysimage
from pynode.julia.packages import EXTRAS, declared


def main(argv: list[str]) -> int:
    """Set Julia up.

    Returns
    -------
    int
        0 when all is in place.

    Raises
    ------
    MissingPackageError
        If juliacall or juliapkg is not installed.
    UnsupportedError
        If a step failed, or a system image cannot be built here.
    """
    options = _parser().parse_args(argv)
    for name in ("juliacall", "juliapkg"):
        if inventory.version_of(name) is None:
            raise MissingPackageError(
                explain(f"{name} is not installed", "the Python side of Julia", "run pip install 'pynode[julia]'")
            )
    setup(options.with_ or (), image=options.sysimage, force=options.force)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pynode julia", description="The Julia backend.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    setup = commands.add_parser(
        "setup",
        help="install Julia and its packages, and compile them",
        description="Install Julia (where none is found) and the packages pynode needs, and compile them. Downloads "
        "from Julia's package servers; `pynode doctor` tells beforehand what is missing.",
    )
    setup.add_argument(
        "--with",
        dest="with_",
        action="append",
        choices=list(EXTRAS),
        help="also install: " + "; ".join(f"{name} ({', '.join(p.name for p in ps)})" for name, ps in EXTRAS.items()),
    )
    setup.add_argument(
        "--sysimage",
        action="store_true",
        help="also build a system image with PackageCompiler (needs a C compiler, some GB of memory, and many minutes)",
    )
    setup.add_argument("--force", action="store_true", help="resolve the versions anew even if nothing has changed")
    return parser


def setup(extras: Sequence[str] = (), *, image: bool = False, force: bool = False) -> None:
    """Resolve, install and compile the packages of the Julia project, one line a step.

    Parameters
    ----------
    extras : sequence of str
        Names in :data:`pynode.julia.packages.EXTRAS`.
    image : bool
        Build a system image, and start Julia with it from then on. This route was written after PackageCompiler's
        manual and could not be run where it was written, which has no package server.
    force : bool
        Resolve even if nothing has changed.
    """
    import juliapkg

    offline = bool(juliapkg.offline(None))
    if image:
        refuse_image(offline)
    # Packages that extend one another are compiled for it when they meet.
    load = "import " + ", ".join((*_CORE, *(package.name for extra in extras for package in EXTRAS[extra])))
    steps: list[tuple[str, Callable[[], Any]]] = []
    if extras:
        steps.append((f"asking for {', '.join(extras)}", lambda: _ask(juliapkg, extras)))
    steps += [
        (
            "resolving versions and installing" + (" (offline: nothing is installed)" if offline else ""),
            lambda: juliapkg.resolve(force=force),
        ),
    ]
    if not offline:
        steps.append(("compiling the packages", lambda: _julia(_COMPILE)))
    steps.append(("loading them once", lambda: _julia(load)))
    if image:
        steps.append(("building a system image; this takes many minutes", build_image))
    for number, (title, work) in enumerate(steps, 1):
        print(f"[{number}/{len(steps)}] {title} ...", flush=True)
        began = time.perf_counter()
        try:
            work()
        except Exception as error:  # juliapkg raises plain ones, urllib's and subprocess's
            raise UnsupportedError(
                explain(
                    f"step {number} of {len(steps)}, {title}, failed: {error}",
                    "Julia to succeed; its own messages are above",
                    "see `pynode doctor`; check the network, or PYTHON_JULIAPKG_OFFLINE",
                )
            ) from error
        print(f"[{number}/{len(steps)}] done in {time.perf_counter() - began:.1f} s", flush=True)
    missing = inventory.take().missing
    if missing:
        raise UnsupportedError(
            explain(
                f"the Julia project {juliapkg.project()} still lacks {', '.join(missing)}",
                "all packages that pynode declares",
                "allow juliapkg to download (unset PYTHON_JULIAPKG_OFFLINE)" if offline else "run it with --force",
            )
        )
    print("ready: pynode.solve(..., backend='julia')", flush=True)


def _ask(juliapkg: Any, extras: Sequence[str]) -> None:
    for extra in extras:
        for package in EXTRAS[extra]:
            juliapkg.add(package.name, package.uuid, version=package.version)


#: Both want a registry, even where nothing is missing. Offline, what is loaded is compiled then.
_COMPILE = "import Pkg; Pkg.instantiate(); Pkg.precompile()"
_CORE = ("PyNode", "SciMLSensitivity")


def _julia(script: str, *arguments: str) -> None:
    import juliapkg

    command = [juliapkg.executable(), f"--project={juliapkg.project()}", "--startup-file=no", "-e", script, *arguments]
    subprocess.run(command, check=True)


def refuse_image(offline: bool) -> None:
    """Raise where PackageCompiler cannot work.

    Raises
    ------
    UnsupportedError
        Without network or C compiler.
    """
    if offline:
        why, remedy = "juliapkg is offline, and PackageCompiler has to be installed", "unset PYTHON_JULIAPKG_OFFLINE"
    elif sys.platform != "win32" and not any(map(shutil.which, ("gcc", "clang", "cc"))):
        why, remedy = "no C compiler was found", "install gcc or clang"
    else:
        return
    raise UnsupportedError(explain(f"--sysimage: {why}", "what PackageCompiler needs", f"{remedy}, or drop --sysimage"))


_BUILD = """
import Pkg
project, image, workload, names... = ARGS
Pkg.activate(; temp = true)
Pkg.add(name = "PackageCompiler", version = "2")
import PackageCompiler
PackageCompiler.create_sysimage(String.(names); sysimage_path = image, project = project,
    precompile_execution_file = workload)
"""


_WORKLOAD = """
import PyNode
using SciMLSensitivity: GaussAdjoint, InterpolatingAdjoint, ZygoteVJP
PyNode.solve_workload()
PyNode.gradient_workload(map(Adjoint -> Adjoint(autojacvec = ZygoteVJP()), (GaussAdjoint, InterpolatingAdjoint)))
"""


def build_image() -> None:
    """Build the image beside the project's manifest, and record it for the next start of Julia."""
    import juliapkg

    project = Path(juliapkg.project())
    suffix = {"win32": "dll", "darwin": "dylib"}.get(sys.platform, "so")
    image = project / f"pynode-sysimage.{suffix}"
    workload = project / "pynode-sysimage-workload.jl"
    workload.write_text(_WORKLOAD)
    sysimage.forget(project)
    names = ["PythonCall", *declared()["packages"]]
    _julia(_BUILD, str(project), str(image), str(workload), *names)
    version = inventory.julia_version(juliapkg.executable())
    if version is None or not image.is_file():
        raise OSError(f"PackageCompiler left no {image}")
    sysimage.record(project, image, version)
