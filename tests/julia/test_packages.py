"""What is declared to juliapkg, in a checkout and in a wheel."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pynode.julia.packages import DECLARATION, EXTRAS, declared, package_folder

ROOT = Path(__file__).resolve().parents[2]


def entries(table: str) -> dict[str, str]:
    """One table of the Julia package's Project.toml."""
    text = (package_folder() / "Project.toml").read_text()
    section = re.search(rf"^\[{table}\]\n(.*?)(?=^\[|\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None
    return dict(re.findall(r'^(\w+) = "(.*)"$', section.group(1), re.MULTILINE))


def test_the_julia_package_is_where_the_declaration_says() -> None:
    text = (package_folder() / "Project.toml").read_text()
    assert f'uuid = "{declared()["packages"]["PyNode"]["uuid"]}"' in text
    assert (package_folder() / "src" / "PyNode.jl").is_file()


def test_names_identifiers_and_versions_agree_with_the_julia_package() -> None:
    known = {**entries("deps"), **entries("weakdeps")}
    compat = entries("compat")
    said = {name: (entry["uuid"], entry.get("version")) for name, entry in declared()["packages"].items()}
    said |= {p.name: (p.uuid, p.version) for packages in EXTRAS.values() for p in packages}
    for name, (uuid, version) in said.items():
        if name in known:
            assert known[name] == uuid, name
            assert version == compat[name], name
    assert declared()["julia"] == compat["julia"]
    # What the package loads on demand must be declared, or asked for with an extra.
    assert set(entries("weakdeps")) <= set(said)


def test_identifiers_agree_with_the_table_of_algorithms() -> None:
    table = (package_folder() / "src" / "algorithms.jl").read_text()
    known = dict(re.findall(r'\("(\w+)", "([0-9a-f-]{36})"', table))
    assert "OrdinaryDiffEqTsit5" in known
    said = {name: entry["uuid"] for name, entry in declared()["packages"].items()}
    said |= {p.name: p.uuid for packages in EXTRAS.values() for p in packages}
    assert {name: known[name] for name in said if name in known} == {n: u for n, u in said.items() if n in known}
    solvers = {name for name in known if name.startswith("OrdinaryDiffEq")}
    brought = set(entries("deps")) | {"OrdinaryDiffEqNonlinearSolve"}  # the latter by the implicit solvers
    assert solvers <= set(said) | brought


def requirements(folder: Path) -> dict[str, object]:
    """What juliapkg makes of the packages in ``folder``, its own included, in a process that has no others."""
    script = (
        "import juliapkg, json, sys\n"
        "from juliapkg.deps import find_requirements\n"
        "own = [p for p in sys.path if p.endswith('site-packages')]\n"
        f"sys.path[:] = [{str(folder)!r}]\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if not f.__module__.startswith('__editable__')]\n"
        "compat, packages = find_requirements()\n"
        "print(json.dumps({'julia': str(compat), 'packages': [p.dict() for p in packages]}))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def check_requirements(folder: Path) -> None:
    found = requirements(folder)
    packages = {package["name"]: package for package in found["packages"]}  # type: ignore[attr-defined]
    own = packages["PyNode"]
    assert own["dev"] is True
    assert (Path(own["path"]) / "src" / "PyNode.jl").is_file()
    assert Path(own["path"]).is_relative_to(folder)
    assert packages["SciMLSensitivity"]["version"]


def test_juliapkg_finds_the_package_of_a_checkout() -> None:
    pytest.importorskip("juliapkg")
    check_requirements(DECLARATION.parents[1])


def test_juliapkg_finds_the_package_of_a_wheel(tmp_path: Path) -> None:
    pytest.importorskip("juliapkg")
    pytest.importorskip("hatchling")
    if not (ROOT / "hatch_build.py").is_file():
        pytest.skip("not a checkout")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert len(names) == len(set(names))
        archive.extractall(tmp_path / "installed")
    shipped = {name for name in names if name.startswith("pynode/juliaenv/")}
    wanted = [p for part in ("src", "ext") for p in (ROOT / "juliaenv" / part).rglob("*.jl")]
    assert {f"pynode/{p.relative_to(ROOT).as_posix()}" for p in wanted} < shipped
    assert "pynode/juliaenv/Project.toml" in shipped
    assert not any("Manifest" in name for name in names)
    check_requirements(tmp_path / "installed")
