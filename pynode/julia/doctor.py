"""``pynode doctor``: what is installed, what would be downloaded, and whether it works."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from typing import Any

import torch

import pynode
from pynode.julia import inventory
from pynode.julia.packages import declared, package_folder
from pynode.julia.selftest import TOLERANCE, check

_SETUP = "pynode julia setup"


def main(argv: list[str]) -> int:
    """Look around and test.

    Returns
    -------
    int
        0 if every self-test that could run passed, 1 otherwise. What is not installed is no failure.
    """
    parser = argparse.ArgumentParser(
        prog="pynode doctor", description="Show what is installed, and test it. Never installs or downloads anything."
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument("--no-julia", action="store_true", help="do not start Julia for its self-test")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds Julia's self-test may take (600)")
    options = parser.parse_args(argv)
    found = inventory.take()
    report: dict[str, Any] = {
        "python": _python(),
        "devices": _devices(),
        "julia": _julia(found),
        "packages": _packages(found),
        "environment": _environment(),
    }
    if not options.json:
        _print(report)
        if found.ready and not options.no_julia:
            print(
                "self-test: starting Julia in a process of its own; loading its packages takes a while ...", flush=True
            )
    report["self-test"] = {
        "torch": torch_test(),
        "julia": "skipped: --no-julia" if options.no_julia else julia_test(found, options.timeout),
    }
    if options.json:
        print(json.dumps(report, indent=4))
    else:
        _print({"self-test": report["self-test"]})
    return 1 if any(str(result).startswith("FAILED") for result in report["self-test"].values()) else 0


def _python() -> dict[str, Any]:
    order = [name for name in sys.modules if name in ("torch", "juliacall")]
    return {
        "python": f"{platform.python_version()} ({sys.executable})",
        "pynode": f"{pynode.__version__} ({os.path.dirname(pynode.__file__)})",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        **{name: inventory.version_of(name) or "not installed" for name in ("juliacall", "juliapkg", "diffeqpy")},
        "imported so far": ", then ".join(order),
    }


def _devices() -> dict[str, Any]:
    if not torch.cuda.is_available():
        why = "this torch was built without it" if torch.version.cuda is None else "torch finds no device"
        return {"cpu": platform.machine(), "cuda": f"no ({why})"}
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"cpu": platform.machine(), "cuda": f"{torch.version.cuda}: {', '.join(names)}"}


def _julia(found: inventory.Inventory) -> dict[str, Any]:
    if found.juliacall is None:
        return {"state": f"not installed. For backend='julia': pip install 'pynode[julia]', then {_SETUP}"}
    return {
        "executable": found.executable or "none found",
        "version": found.version or "unknown",
        "project": str(found.project or "unknown"),
        "state": _state(found),
        **({"trouble": found.trouble} if found.trouble else {}),
        "first use would download": found.downloads or "nothing",
        **({"offline": "juliapkg may not download (PYTHON_JULIAPKG_OFFLINE)"} if found.offline else {}),
        "system image": found.image,
        "extras": found.extras or f"none ({_SETUP} --with NAME)",
    }


def _state(found: inventory.Inventory) -> str:
    if not found.ready:
        return f"not ready: run {_SETUP}"
    return f"ready, but without {', '.join(found.missing)}: run {_SETUP}" if found.missing else "ready"


def _packages(found: inventory.Inventory) -> dict[str, Any]:
    if found.juliacall is None:
        return {}
    named = {name: found.packages.get(name, "missing") for name in declared()["packages"]}
    named["PyNode"] += f" ({package_folder()})"
    others = ("SciMLBase", "DiffEqBase", "OrdinaryDiffEqCore", "OrdinaryDiffEqTsit5", "OrdinaryDiffEqLowOrderRK")
    wished = ("PythonCall", "Lux", "DiffEqFlux", "Zygote", "CUDA", "DiffEqGPU")
    return named | {name: found.packages[name] for name in (*others, *wished) if name in found.packages}


def _environment() -> dict[str, Any]:
    prefixes = ("PYTHON_JULIACALL_", "PYTHON_JULIAPKG_", "JULIA_")
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(prefixes)}


def torch_test() -> str:
    """The verdict on the torch backend."""
    try:
        return _verdict(check("torch"))
    except Exception as error:  # a self-test reports what is broken, whatever it is
        return f"FAILED: {type(error).__name__}: {error}"


def julia_test(found: inventory.Inventory, timeout: float) -> str:
    """The verdict on the Julia backend, from a process of its own: this one survives what may happen there."""
    if found.juliacall is None:
        return "skipped: juliacall is not installed"
    if not found.ready:
        return f"skipped: starting Julia would install or download something; run {_SETUP}"
    began = time.perf_counter()
    command = [sys.executable, "-m", "pynode.julia.selftest", "julia"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return f"FAILED: no answer within {timeout:g} s"
    took = time.perf_counter() - began
    if done.returncode < 0:
        return f"FAILED: the process died of signal {-done.returncode}"
    if done.returncode > 0:
        return f"FAILED: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
    return f"{_verdict(json.loads(done.stdout.splitlines()[-1]))}; {took:.1f} s with the start of Julia"


def _verdict(result: dict[str, Any]) -> str:
    times = f"first solve and gradient {result['first']:.2f} s, second {result['second']:.4f} s"
    text = f"error {result['error']:.1e}, {times}"
    return f"ok: {text}" if result["error"] <= TOLERANCE else f"FAILED: {text}, expected an error below {TOLERANCE:g}"


def _print(report: dict[str, Any]) -> None:
    for section, lines in report.items():
        print(f"{section}:" if lines else f"{section}: -")
        width = max((len(name) for name in lines), default=0)
        for name, value in lines.items():
            print(f"  {name.ljust(width)}  {', '.join(value) if isinstance(value, list) else value}", flush=True)
