"""What pynode never does by itself: run text as a program, unpickle, reach the network, write files."""

from __future__ import annotations

import ast
import functools
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pynode

PACKAGE = Path(pynode.__file__).parent
SOURCES = {str(path.relative_to(PACKAGE.parent)): path for path in sorted(PACKAGE.rglob("*.py"))}

#: Ways to run text, or to read what may run code when it is read.
RUNS = {"eval", "exec", "compile", "__import__", "execfile", "seval", "include_string", "system", "popen", "spawnv"}
UNPICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
NETWORK = {"socket", "urllib", "http", "requests", "ftplib", "smtplib", "httpx", "aiohttp", "xmlrpc", "telnetlib"}

#: Where text is run as a program, and which text. Whoever adds a line here has to say why it is no one else's.
ALLOWED = {
    ("pynode/julia/runtime.py", "seval"): 3,  # import PyNode; a literal; import statements of load()
    ("pynode/julia/lux.py", "seval"): 2,  # the name of a precision; import of named packages
}
#: Programs that are started, with arguments as a list and without a shell.
STARTS = {
    "pynode/cpp/compile.py",  # the C++ compiler
    "pynode/julia/command.py",  # julia, by `pynode julia setup`
    "pynode/julia/doctor.py",  # julia, by `pynode doctor`
    "pynode/julia/inventory.py",  # julia --version
    "pynode/bench",  # peers in processes of their own, by `pynode bench`
    "pynode/demo",  # one measurement in a process of its own, by `pynode demo`
}


@functools.cache
def nodes() -> dict[str, list[ast.AST]]:
    return {name: [*ast.walk(ast.parse(path.read_text(encoding="utf-8")))] for name, path in SOURCES.items()}


def called(node: ast.Call) -> str:
    function = node.func
    return (
        function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""
    )


def is_bare_or_of(node: ast.Call, owners: set[str]) -> bool:
    """``compile(...)`` and ``builtins.compile(...)``, but not ``re.compile(...)`` or ``model.eval()``."""
    function = node.func
    if isinstance(function, ast.Name):
        return True
    return isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id in owners


def runs_text(found_nodes: list[ast.AST]) -> list[str]:
    found = []
    for node in found_nodes:
        if isinstance(node, ast.Call) and called(node) in RUNS:
            always = called(node) in {"seval", "include_string"}
            if always or is_bare_or_of(node, {"os", "builtins", "main", "jl"}):
                found.append(called(node))
    return found


def test_no_text_is_run_as_a_program_but_where_it_is_named() -> None:
    found: dict[tuple[str, str], int] = {}
    for name, listed in nodes().items():
        for what in runs_text(listed):
            found[name, what] = found.get((name, what), 0) + 1
    assert found == ALLOWED
    assert len(SOURCES) > 300


def test_the_search_finds_what_it_is_for() -> None:
    text = "eval(x); exec(x); re.compile(x); model.eval(); main.seval(x); os.system(x)"
    assert sorted(runs_text([*ast.walk(ast.parse(text))])) == ["eval", "exec", "seval", "system"]


def test_julia_gets_no_name_of_the_users() -> None:
    """What seval is given is written here: literals, and ``import`` of packages."""
    for name, what in ALLOWED:
        for node in nodes()[name]:
            if isinstance(node, ast.Call) and called(node) == what:
                (argument,) = node.args
                text = ast.unparse(argument)
                literal = isinstance(argument, ast.Constant) or (
                    isinstance(argument, ast.IfExp)
                    and isinstance(argument.body, ast.Constant)
                    and isinstance(argument.orelse, ast.Constant)
                )
                assert literal or text in {"statement", "f'import {wanted}'"}, text
    loads = []
    for listed in nodes().values():
        constants = {
            ast.unparse(x.targets[0]): x.value
            for x in listed
            if isinstance(x, ast.Assign) and isinstance(x.value, ast.Constant)
        }
        for x in listed:
            if isinstance(x, ast.Call) and ast.unparse(x.func) in {"self.load", "engine.load", "julia().load"}:
                loads.append(constants.get(ast.unparse(x.args[0]), x.args[0]))
    assert len(loads) >= 3
    assert all(isinstance(x, ast.Constant) and str(x.value).startswith("import ") for x in loads)


def test_nothing_is_unpickled() -> None:
    for name, listed in nodes().items():
        for node in listed:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [x.name for x in node.names]
                assert not {x.partition(".")[0] for x in names} & UNPICKLING, name
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"torch.load", "np.load", "numpy.load"}:
                options = {x.arg: ast.unparse(x.value) for x in node.keywords}
                assert options.get("allow_pickle", "False") == "False", name
                assert ast.unparse(node.func) != "torch.load" or options.get("weights_only") == "True", name


def test_programs_are_started_without_a_shell() -> None:
    for name, listed in nodes().items():
        for node in listed:
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("subprocess."):
                assert any(name.startswith(allowed) for allowed in STARTS), name
                assert all(x.arg != "shell" for x in node.keywords), name


def test_no_module_of_the_network_is_imported() -> None:
    for name, listed in nodes().items():
        for node in listed:
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [x.name for x in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            assert not {x.partition(".")[0] for x in names} & NETWORK, name


def test_a_solve_connects_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError(f"connected: {args[1:]}")

    for method in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, method, refuse)
    field = torch.nn.Linear(2, 2)
    sol = pynode.solve(lambda t, y: field(y), torch.ones(2), [0.0, 1.0])
    sol.ys[-1].sum().backward()
    assert field.weight.grad is not None


SCRIPT = """
import socket

def refuse(*args):
    raise SystemExit(f"connected: {args[1:]}")

for method in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, method, refuse)
import pynode, pynode.nn, pynode.training, pynode.problems, pynode.compat.torchdiffeq, torch

field = torch.nn.Linear(2, 2)
for algorithm in (pynode.Tsit5(), pynode.RadauIIA5()):
    sol = pynode.solve(lambda t, y: field(y), torch.ones(2), [0.0, 1.0], algorithm=algorithm)
    sol.ys[-1].sum().backward()
print("solved")
"""


def test_importing_and_solving_writes_no_file_and_connects_to_nothing(tmp_path: Path) -> None:
    folders = {key: tmp_path / key for key in ("home", "here", "tmp")}
    for folder in folders.values():
        folder.mkdir()
    kept = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
    places = {"HOME": folders["home"], "TMPDIR": folders["tmp"], "XDG_CACHE_HOME": folders["home"] / ".cache"}
    done = subprocess.run(
        [sys.executable, "-B", "-c", SCRIPT],
        cwd=folders["here"],
        env={**kept, **{k: str(v) for k, v in places.items()}, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "solved\n", done.stderr
    assert [path for folder in folders.values() for path in folder.rglob("*")] == []


def test_the_compile_cache_is_where_it_is_said_to_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pynode.cpp.compile import cache_directory

    monkeypatch.delenv("PYNODE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_directory() == tmp_path / ".cache" / "pynode"
    monkeypatch.setenv("PYNODE_CACHE", str(tmp_path / "elsewhere"))
    assert cache_directory() == tmp_path / "elsewhere"
