"""The ``pynode`` command. Each subcommand is a module with ``main(argv) -> int``, imported when it is chosen."""

from __future__ import annotations

import argparse
import importlib
import sys
from dataclasses import dataclass

import pynode
from pynode.errors import InputError, PynodeError


@dataclass(frozen=True)
class Command:
    """A subcommand: where its ``main(argv: list[str]) -> int`` lives, and one line for ``pynode --help``."""

    module: str
    summary: str


#: Every subcommand, by name. A new one is one entry here.
COMMANDS: dict[str, Command] = {
    "demo": Command(
        "pynode.demo.command", "train an ODE-net and a ResNet on digits, check the gradient, draw a picture"
    ),
    "crosscheck": Command(
        "pynode.crosscheck.command", "compare every way to solve and differentiate a problem, built-in or your own"
    ),
    "validity": Command(
        "pynode.training.validity_command", "is a trained model a flow, or only the discretisation it was trained with?"
    ),
    "doctor": Command("pynode.julia.doctor", "show what is installed and what would be downloaded, and test it"),
    "julia": Command("pynode.julia.command", "set up the Julia backend: julia setup [--with NAME] [--sysimage]"),
    "bench": Command("pynode.bench.__main__", "measure time, memory and gradient error against other libraries"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the ``pynode`` command.

    Parameters
    ----------
    argv : list of str, optional
        Arguments without the program's name; ``sys.argv[1:]`` by default.

    Returns
    -------
    int
        Exit status: 0 on success, 1 when the job failed, 2 when it could not start (arguments, missing packages or
        files), 130 when interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    # Only the first word is parsed here: all that follows belongs to the subcommand, its --help included.
    name = _parser().parse_args(argv[:1]).command
    try:
        run = importlib.import_module(COMMANDS[name].module).main
        return int(run(argv[1:]))
    except PynodeError as error:
        print(f"pynode {name}: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError | ImportError) else 1
    except KeyboardInterrupt:
        print(f"pynode {name}: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pynode", description=pynode.__doc__)
    parser.add_argument("--version", action="version", version=f"pynode {pynode.__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", title="commands (each has its own --help)"
    )
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.summary, add_help=False)
    return parser
