"""pynode doctor: what it finds, in made-up surroundings and for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pynode import cli
from pynode.julia import doctor, inventory, sysimage
from pynode.julia.inventory import Inventory
from pynode.julia.packages import EXTRAS, declared

MANIFEST = """# This file is machine-generated
julia_version = "1.10.8"

[[deps.PyNode]]
deps = ["LinearAlgebra"]
path = "somewhere"
uuid = "4f0c2a5e-6d0b-4a7e-9a43-2b7f5c1d8e90"
version = "0.1.0"

    [deps.PyNode.extensions]
    PyNodeSciMLSensitivityExt = "SciMLSensitivity"

[[deps.LinearAlgebra]]
uuid = "37e2e46d-f89d-539d-b4ee-838fcccc9c8e"

[[deps.SciMLSensitivity]]
version = "7.112.3"
"""


@pytest.fixture
def surroundings(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """None of this machine's own."""
    for name in list(os.environ):
        if name.startswith(("PYTHON_JULIA", "JULIA_")):
            monkeypatch.delenv(name)
    return monkeypatch


def executable(folder: Path, says: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "julia"
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def ready(folder: Path) -> Inventory:
    return Inventory(
        juliacall="0.9.34",
        juliapkg="0.1.28",
        executable="/x/julia",
        version="1.10.8",
        project=folder,
        resolved=True,
        packages=dict.fromkeys(declared()["packages"], "1.0"),
    )


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, Any]]:
    status = cli.main(["doctor", "--json", *argv])
    return status, json.loads(capsys.readouterr().out)


def test_manifest_is_read(tmp_path: Path) -> None:
    (tmp_path / "Manifest.toml").write_text(MANIFEST)
    assert inventory.packages_in(tmp_path) == {
        "PyNode": "0.1.0",
        "LinearAlgebra": "stdlib",
        "SciMLSensitivity": "7.112.3",
    }
    assert inventory.packages_in(tmp_path / "nowhere") == {}


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for julia is a shell script")
def test_version_of_julia(tmp_path: Path) -> None:
    assert inventory.julia_version(str(executable(tmp_path / "a", "julia version 1.11.2"))) == "1.11.2"
    assert inventory.julia_version(str(executable(tmp_path / "b", "something else"))) is None
    assert inventory.julia_version(str(tmp_path / "nothing")) is None


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for julia is a shell script")
def test_juliacall_told_where_julia_is(tmp_path: Path, surroundings: pytest.MonkeyPatch) -> None:
    julia = executable(tmp_path / "bin", "julia version 1.10.8")
    (tmp_path / "Manifest.toml").write_text(MANIFEST)
    surroundings.setenv("PYTHON_JULIACALL_EXE", str(julia))
    surroundings.setenv("PYTHON_JULIACALL_PROJECT", str(tmp_path))
    found = inventory.take()
    assert (found.executable, found.version, found.project) == (str(julia), "1.10.8", tmp_path)
    assert found.resolved
    assert "OrdinaryDiffEqBDF" in found.missing
    assert "SciMLSensitivity" not in found.missing


def test_without_juliacall(surroundings: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    surroundings.setattr(inventory, "version_of", lambda name: None)
    status, report = run(capsys)
    assert status == 0
    assert report["python"]["juliacall"] == "not installed"
    assert "pip install 'pynode[julia]'" in report["julia"]["state"]
    assert "pynode julia setup" in report["julia"]["state"]
    assert report["self-test"]["torch"].startswith("ok")
    assert report["self-test"]["julia"] == "skipped: juliacall is not installed"


def test_before_the_first_download(
    surroundings: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A new environment: told what would come, and nothing fetched or written to find out."""
    pytest.importorskip("juliapkg")
    from juliapkg.state import STATE

    project = tmp_path / "julia_env"
    for key, value in {"project": str(project), "offline": False, "resolved": False}.items():
        surroundings.setitem(STATE, key, value)
    surroundings.setattr(inventory, "version_of", lambda name: "1.0")
    surroundings.setattr(inventory.shutil, "which", lambda name: None)
    surroundings.setattr(inventory.subprocess, "run", lambda *a, **k: pytest.fail("something was run"))
    status, report = run(capsys)
    assert status == 0
    downloads = report["julia"]["first use would download"]
    assert any(line.startswith("Julia (1.10") for line in downloads)
    assert any(line.startswith("SciMLSensitivity.jl") for line in downloads)
    assert report["julia"]["state"] == "not ready: run pynode julia setup"
    assert report["self-test"]["julia"].startswith("skipped: starting Julia would install")
    assert not project.exists()


def test_downloads() -> None:
    found = ready(Path())
    assert found.ready
    assert found.downloads == []
    del found.packages["OrdinaryDiffEqBDF"]
    assert found.ready  # FBDF is not there, the rest works
    assert doctor._state(found) == "ready, but without OrdinaryDiffEqBDF: run pynode julia setup"
    found.resolved = False
    assert found.downloads == ["OrdinaryDiffEqBDF.jl and what it needs"]
    assert not found.ready
    found.version = None
    assert found.downloads[0].startswith("Julia (1.10")
    found.offline = True
    assert found.downloads == []
    assert not found.ready
    found = ready(Path())
    del found.packages["SciMLSensitivity"]
    assert not found.ready
    found = ready(Path())
    found.resolved = False
    assert found.downloads == ["the registry, and versions of packages that have changed"]
    assert found.extras == []
    found.packages |= {package.name: "1.0" for package in EXTRAS["flux"]}
    assert found.extras == ["flux"]


def answering(monkeypatch: pytest.MonkeyPatch, code: int, out: str = "", err: str = "") -> None:
    def answer(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command == [sys.executable, "-m", "pynode.julia.selftest", "julia"]
        return subprocess.CompletedProcess(command, code, out, err)

    monkeypatch.setattr(doctor.subprocess, "run", answer)


@pytest.mark.parametrize(
    ("code", "out", "err", "verdict", "status"),
    [
        (0, 'noise\n{"error": 1e-9, "first": 2.0, "second": 0.01}\n', "", "ok: error 1.0e-09, first", 0),
        (0, '{"error": 1e-3, "first": 2.0, "second": 0.01}\n', "", "FAILED: error 1.0e-03", 1),
        (0, '{"error": NaN, "first": 2.0, "second": 0.01}\n', "", "FAILED: error nan", 1),
        (1, "", "Traceback\nValueError: no PyNode\n", "FAILED: ValueError: no PyNode", 1),
        (-11, "", "", "FAILED: the process died of signal 11", 1),
    ],
)
def test_verdict_on_julia(
    code: int,
    out: str,
    err: str,
    verdict: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(inventory, "take", lambda: ready(tmp_path))
    answering(monkeypatch, code, out, err)
    got, report = run(capsys)
    assert report["self-test"]["julia"].startswith(verdict)
    assert got == status


def test_no_julia_does_not_start_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(inventory, "take", lambda: ready(tmp_path))
    monkeypatch.setattr(doctor.subprocess, "run", lambda *a, **k: pytest.fail("Julia was started"))
    status, report = run(capsys, "--no-julia")
    assert (status, report["self-test"]["julia"]) == (0, "skipped: --no-julia")


def test_a_broken_torch_backend_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(backend: str) -> dict[str, Any]:
        raise RuntimeError("no luck")

    monkeypatch.setattr(doctor, "check", broken)
    status, report = run(capsys, "--no-julia")
    assert status == 1
    assert report["self-test"]["torch"] == "FAILED: RuntimeError: no luck"


def test_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr(inventory, "take", lambda: ready(tmp_path))
    answering(monkeypatch, 0, '{"error": 0.0, "first": 2.0, "second": 0.01}\n')
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.endswith(":")][:4] == ["python:", "devices:", "julia:", "packages:"]
    assert any(line.startswith("self-test: starting Julia") for line in lines)
    assert any(line.split() == ["first", "use", "would", "download", "nothing"] for line in lines)


def test_system_image_counts_while_nothing_has_changed(tmp_path: Path) -> None:
    image = tmp_path / "image.so"
    assert sysimage.recorded(tmp_path, "1.10.8") is None
    image.write_text("")
    (tmp_path / "Manifest.toml").write_text(MANIFEST)
    sysimage.record(tmp_path, image, "1.10.8")
    assert sysimage.recorded(tmp_path, "1.10.8") == image
    assert "Julia 1.10.8" in str(sysimage.why_not(tmp_path, "1.11.0"))
    (tmp_path / "Manifest.toml").write_text(MANIFEST.replace("7.112.3", "7.113.0"))
    assert "packages have changed" in str(sysimage.why_not(tmp_path, "1.10.8"))
    (tmp_path / "Manifest.toml").write_text(MANIFEST)
    image.unlink()
    assert "is gone" in str(sysimage.why_not(tmp_path, "1.10.8"))
    (tmp_path / "pynode-sysimage.json").write_text("[]")
    assert "cannot be read" in str(sysimage.why_not(tmp_path, "1.10.8"))
    sysimage.forget(tmp_path)
    sysimage.forget(tmp_path)
    assert sysimage.why_not(tmp_path, "1.10.8") == "none was built"


def test_julia_starts_with_the_image_that_fits(tmp_path: Path, surroundings: pytest.MonkeyPatch) -> None:
    state = pytest.importorskip("juliapkg.state").STATE
    name = "PYTHON_JULIACALL_SYSIMAGE"
    surroundings.setenv(name, "")  # restored at the end, whatever happens here
    surroundings.delenv(name)
    surroundings.setitem(state, "project", str(tmp_path))
    surroundings.setattr(inventory, "take", lambda: ready(tmp_path))
    inventory.choose_image()
    assert name not in os.environ
    image = tmp_path / "image.so"
    image.write_text("")
    sysimage.record(tmp_path, image, "1.9.0")
    inventory.choose_image()
    assert name not in os.environ
    sysimage.record(tmp_path, image, ready(tmp_path).version or "")
    surroundings.setenv(name, "my own")
    inventory.choose_image()
    assert os.environ[name] == "my own"
    surroundings.delenv(name)
    inventory.choose_image()
    assert os.environ[name] == str(image)


@pytest.mark.julia
def test_for_real() -> None:
    done = subprocess.run([sys.executable, "-m", "pynode", "doctor", "--json"], capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert done.returncode == 0, report
    assert report["julia"]["state"].startswith("ready")
    assert report["self-test"]["julia"].startswith("ok")
