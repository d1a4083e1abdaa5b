"""pynode julia setup: its steps and refusals, with a stand-in for juliapkg; and life without juliacall."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import pynode
from pynode import cli
from pynode.errors import PynodeError
from pynode.julia import command, inventory, sysimage
from pynode.julia.inventory import Inventory
from pynode.julia.packages import EXTRAS, declared


class Juliapkg(SimpleNamespace):
    """What is asked of juliapkg, in order."""

    def __init__(self, project: Path) -> None:
        super().__init__(calls=[], is_offline=False, folder=project)

    def offline(self, value: Any = True) -> bool:
        assert value is None
        return self.is_offline

    def add(self, name: str, uuid: str, version: str) -> None:
        self.calls.append(("add", name, uuid, version))

    def resolve(self, force: bool = False) -> bool:
        self.calls.append(("resolve", force))
        return True

    def executable(self) -> str:
        return "/x/julia"

    def project(self) -> str:
        return str(self.folder)


@pytest.fixture
def juliapkg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Juliapkg:
    stand_in = Juliapkg(tmp_path)
    monkeypatch.setitem(sys.modules, "juliapkg", stand_in)
    monkeypatch.setattr(inventory, "version_of", lambda name: "1.0")
    everything = dict.fromkeys(declared()["packages"], "1.0")
    monkeypatch.setattr(inventory, "take", lambda: Inventory(packages=everything))
    monkeypatch.setattr(inventory, "julia_version", lambda executable: "1.10.8")
    monkeypatch.setattr(command.shutil, "which", lambda name: f"/usr/bin/{name}")

    def run(argv: list[str], check: bool) -> None:
        assert argv[:3] == ["/x/julia", f"--project={tmp_path}", "--startup-file=no"]
        stand_in.calls.append(("julia", *argv[4:]))

    monkeypatch.setattr(command.subprocess, "run", run)
    return stand_in


def kinds(juliapkg: Juliapkg) -> list[str]:
    return [call[0] for call in juliapkg.calls]


def test_steps(juliapkg: Juliapkg, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["julia", "setup"]) == 0
    assert kinds(juliapkg) == ["resolve", "julia", "julia"]
    assert "Pkg.instantiate()" in juliapkg.calls[1][1]
    assert "Pkg.precompile()" in juliapkg.calls[1][1]
    assert juliapkg.calls[2][1] == "import PyNode, SciMLSensitivity"
    lines = capsys.readouterr().out.splitlines()
    assert [line[:5] for line in lines[:-1]] == ["[1/3]", "[1/3]", "[2/3]", "[2/3]", "[3/3]", "[3/3]"]
    assert lines[-1].startswith("ready")


def test_offline_setup_asks_for_no_registry(juliapkg: Juliapkg) -> None:
    juliapkg.is_offline = True
    assert cli.main(["julia", "setup"]) == 0
    assert juliapkg.calls == [("resolve", False), ("julia", "import PyNode, SciMLSensitivity")]


def test_extras_are_asked_for_before_resolving(juliapkg: Juliapkg) -> None:
    assert cli.main(["julia", "setup", "--with", "cuda", "--with", "ensembles", "--force"]) == 0
    wished = [*EXTRAS["cuda"], *EXTRAS["ensembles"]]
    assert juliapkg.calls[: len(wished)] == [("add", p.name, p.uuid, p.version) for p in wished]
    assert juliapkg.calls[len(wished)] == ("resolve", True)


def test_system_image_is_recorded(juliapkg: Juliapkg, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The route up to PackageCompiler, which is not there, and after it."""
    sysimage.record(tmp_path, tmp_path / "old.so", "1.9")
    record = command.subprocess.run

    def build(argv: list[str], check: bool) -> None:
        record(argv, check)
        if "PackageCompiler" in argv[4]:
            # An image that is being built must not be what Julia starts with.
            assert sysimage.why_not(tmp_path, "1.10.8") == "none was built"
            project, image, workload, *names = argv[5:]
            assert project == str(tmp_path)
            assert "import PyNode" in Path(workload).read_text()
            assert {"PythonCall", "PyNode", "SciMLSensitivity"} <= set(names)
            Path(image).write_text("")

    monkeypatch.setattr(command.subprocess, "run", build)
    assert cli.main(["julia", "setup", "--sysimage"]) == 0
    image = sysimage.recorded(tmp_path, "1.10.8")
    assert image is not None
    assert image.parent == tmp_path


def test_no_image_no_record(juliapkg: Juliapkg, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["julia", "setup", "--sysimage"]) == 1
    assert "PackageCompiler left no" in capsys.readouterr().err
    assert sysimage.recorded(tmp_path, "1.10.8") is None


def test_refused_images(
    juliapkg: Juliapkg, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command.sys, "platform", "linux")
    monkeypatch.setattr(command.shutil, "which", lambda name: None)
    assert cli.main(["julia", "setup", "--sysimage"]) == 1
    assert "no C compiler" in capsys.readouterr().err
    juliapkg.is_offline = True
    assert cli.main(["julia", "setup", "--sysimage"]) == 1
    assert "offline" in capsys.readouterr().err
    assert juliapkg.calls == []


def test_a_step_that_fails(
    juliapkg: Juliapkg, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str], check: bool) -> None:
        raise subprocess.CalledProcessError(1, argv[0])

    monkeypatch.setattr(command.subprocess, "run", fail)
    assert cli.main(["julia", "setup"]) == 1
    assert "step 2 of 3, compiling the packages, failed" in capsys.readouterr().err


def test_packages_that_are_still_missing(
    juliapkg: Juliapkg, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    juliapkg.is_offline = True
    monkeypatch.setattr(inventory, "take", lambda: Inventory(packages={"PyNode": "0.1.0"}))
    assert cli.main(["julia", "setup"]) == 1
    assert "lacks SciMLSensitivity" in capsys.readouterr().err


def test_setup_without_juliacall(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(inventory, "version_of", lambda name: None)
    assert cli.main(["julia", "setup"]) == 2
    assert "pip install 'pynode[julia]'" in capsys.readouterr().err


def test_backend_without_juliacall(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has both commands; nothing is downloaded, nothing falls back."""
    runtime = pytest.importorskip("pynode.julia.runtime")
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(runtime, "_STATE", {})
    monkeypatch.setitem(sys.modules, "juliacall", None)
    with pytest.raises(PynodeError) as raised:
        pynode.solve(lambda t, y: -y, torch.ones(1), [0.0, 1.0], backend="julia")
    assert "pip install 'pynode[julia]'" in str(raised.value)
    assert "pynode julia setup" in str(raised.value)
