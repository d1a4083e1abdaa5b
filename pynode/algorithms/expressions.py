"""Algorithms written as SciML writes them: ``"AutoTsit5(Rosenbrock23(); maxstiffstep=5)"``.

The text is read, never run: calls of known names, with keyword arguments that are numbers, strings, true or false.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from pynode.algorithms.auto_switch import AutoSwitch, AutoTsit5, AutoVern7, AutoVern9
from pynode.algorithms.base import Algorithm
from pynode.errors import InputError, explain

#: What is called with algorithms.
COMPOSITIONS: dict[str, Callable[..., Algorithm]] = {
    "AutoTsit5": AutoTsit5,
    "AutoVern7": AutoVern7,
    "AutoVern9": AutoVern9,
    "AutoSwitch": AutoSwitch,
}
_WORDS = {"true": True, "false": False}
#: No algorithm has a longer name; a deeper or longer text is none.
_LONGEST = 1_000


def algorithm_from_expression(text: str, known: Mapping[str, type[Algorithm]]) -> Algorithm:
    """The algorithm that ``text`` writes.

    Parameters
    ----------
    text : str
        A call such as ``"AutoVern7(Rodas5P())"`` or ``"Rodas4(linsolve='gmres')"``, in Julia's or Python's spelling.
    known : mapping
        Algorithms by their names.

    Raises
    ------
    InputError
        For anything else, and what the algorithms themselves refuse.
    """
    # Julia parts keyword arguments off by a semicolon.
    spelled = re.sub(r"\(\s*,", "(", text.replace(";", ","))
    try:
        if len(text) > _LONGEST:
            raise ValueError("too long")
        tree = ast.parse(spelled.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _refused(text, "it is no call") from None
    return _called(tree, text, known)


def _called(node: ast.expr, text: str, known: Mapping[str, type[Algorithm]]) -> Algorithm:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise _refused(text, f"{ast.unparse(node)!r} is no call of an algorithm's name")
    name = node.func.id
    make: Callable[..., Algorithm] | None = COMPOSITIONS.get(name, known.get(name))
    if make is None:
        raise _refused(text, f"there is no {name}")
    if node.args and name not in COMPOSITIONS:
        raise _refused(text, f"{name} takes keyword arguments alone")
    algorithms = [_called(argument, text, known) for argument in node.args]
    options = {keyword.arg: _value(keyword, text) for keyword in node.keywords if keyword.arg is not None}
    if len(options) < len(node.keywords):
        raise _refused(text, "** stands for options that it does not name")
    try:
        inspect.signature(make).bind(*algorithms, **options)
        unknown = (
            set(options) - {field.name for field in dataclasses.fields(AutoSwitch)} if name in COMPOSITIONS else ()
        )
    except TypeError as error:
        raise _refused(text, f"{name}: {error}") from None
    if unknown:
        raise _refused(text, f"{name} has no option {', '.join(sorted(unknown))}")
    return make(*algorithms, **options)


def _value(keyword: ast.keyword, text: str) -> Any:
    """The value of a keyword argument: a number, a string, true or false."""
    node = keyword.value
    if isinstance(node, ast.Name) and node.id in _WORDS:
        return _WORDS[node.id]
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        value = None
    if not isinstance(value, int | float | str):
        raise _refused(text, f"{keyword.arg}={ast.unparse(node)} is not a number, a string, true or false")
    return value


def _refused(text: str, why: str) -> InputError:
    shown = text if len(text) <= 200 else text[:200] + "..."
    return InputError(
        explain(
            f"algorithm = {shown!r} cannot be read: {why}",
            f"an algorithm's name, or {', '.join(f'{name}(...)' for name in COMPOSITIONS)} of algorithms with simple "
            "keyword arguments, as in 'AutoTsit5(Rosenbrock23(); maxstiffstep=5)'",
            "pass an algorithm object, AutoTsit5(Rosenbrock23()); backend='julia' takes all of SciML's",
        )
    )
