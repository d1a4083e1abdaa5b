"""Whether a field is still what it was: every object that Python code of ``f`` can reach, by identity.

A captured program holds what ``f`` computed with: weights come anew with every solve, but an attribute that was
replaced, a flag that was switched or a tensor that took the place of another one makes another field.
"""

from __future__ import annotations

import functools
import operator
import types
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_LIMIT = 20_000
_PLAIN = (str, bytes, int, float, complex, bool, type(None), torch.dtype, torch.device, torch.Size, type, range)


class Watch:
    """What is reachable from ``roots``, as it is now.

    Attributes
    ----------
    tensors : list of Tensor
        All tensors found.
    complete : bool
        False where there was too much to look at: nothing can be said then.
    """

    def __init__(self, roots: Iterable[Any]) -> None:
        self.tensors: list[Tensor] = []
        self.complete = True
        self._readers: list[Callable[[], Any]] = []
        self._walk(list(roots))
        self._held = self._read()
        self._flags = [x.requires_grad for x in self.tensors]

    def unchanged(self) -> bool:
        """Whether everything reachable is still the same objects, tensors asking for gradients as they did."""
        now = self._read()
        if len(now) != len(self._held) or not all(map(operator.is_, now, self._held)) or not self.complete:
            return False
        return [x.requires_grad for x in self.tensors] == self._flags

    def _read(self) -> list[Any]:
        found: list[Any] = []
        for reader in self._readers:
            found += reader()
        return found

    def _walk(self, stack: list[Any]) -> None:
        # Held while walking: an object made on the fly must not lend its identity to the next one.
        seen: dict[int, Any] = {}
        while stack:
            thing = stack.pop()
            if id(thing) in seen or isinstance(thing, _PLAIN):
                continue
            seen[id(thing)] = thing
            if len(seen) > _LIMIT:
                self.complete = False
                return
            if isinstance(thing, Tensor):
                self.tensors.append(thing)
                continue
            if isinstance(thing, torch.nn.Module):  # its reader looks into these itself
                own = vars(thing)
                seen.update((id(own[name]), own[name]) for name in _REGISTRIES if name in own)
            reader = _reader(thing)
            if reader is not None:
                self._readers.append(reader)
                stack += reader()
            stack += _members(thing)


#: A module's own containers: parameters, buffers, children, hooks. Most of them are empty.
_REGISTRIES = tuple(name for name, value in vars(torch.nn.Module()).items() if isinstance(value, dict | set))


def _reader(thing: Any) -> Callable[[], list[Any]] | None:
    """A function that lists what ``thing`` refers to now; None where that cannot change or does not count."""
    if isinstance(thing, torch.nn.Module):
        state = vars(thing)
        registries = [state[name] for name in _REGISTRIES if isinstance(state.get(name), dict)]

        def module() -> list[Any]:
            found = [*state.values()]
            for registry in registries:
                if registry:
                    found += registry.values()
            return found

        return module
    if isinstance(thing, dict):
        return lambda: [*thing.keys(), *thing.values()]
    if isinstance(thing, list | tuple):
        return functools.partial(list, thing)
    if isinstance(thing, set | frozenset):
        return functools.partial(sorted, thing, key=id)
    if isinstance(thing, types.FunctionType):
        return _function(thing)
    if isinstance(thing, functools.partial):
        parts = [thing.func, thing.args, thing.keywords]
        return lambda: parts
    if isinstance(thing, types.ModuleType | types.CodeType | types.BuiltinFunctionType):
        return None
    attributes = getattr(thing, "__dict__", None)
    if isinstance(attributes, dict) and attributes:
        return lambda: [*attributes.values()]
    return None


def _members(thing: Any) -> list[Any]:
    """What an object's class contributes: its functions, and tensors among its attributes."""
    if isinstance(thing, types.MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, property):
        return [thing.fget]
    if isinstance(thing, staticmethod | classmethod):
        return [thing.__func__]
    if isinstance(thing, types.FunctionType | types.ModuleType | dict | list | tuple | set | frozenset):
        return []
    return [
        member
        for base in type(thing).__mro__
        if base.__module__.partition(".")[0] not in ("builtins", "torch", "typing", "abc", "functools", "collections")
        for member in vars(base).values()
        if isinstance(member, types.FunctionType | Tensor | property | staticmethod | classmethod)
    ]


def _function(function: types.FunctionType) -> Callable[[], list[Any]] | None:
    """Closure, defaults, and the globals that the function names, those inside modules included."""
    if (function.__module__ or "").partition(".")[0] == "torch":
        return None
    cells, space, names = function.__closure__ or (), function.__globals__, _names(function.__code__)
    own = weakref.ref(function)  # a watch that kept its root would keep it for ever
    used = [name for name in names if name in space]
    spaces = [(space, used)] if used else []
    for name in used:
        module = space[name]
        if isinstance(module, types.ModuleType) and module.__name__.partition(".")[0] != "torch":
            inside = [inner for inner in names if inner in vars(module)]
            if inside:
                spaces.append((vars(module), inside))

    def read() -> list[Any]:
        now = own()
        found: list[Any] = [] if now is None else [now.__code__, now.__defaults__, now.__kwdefaults__]
        for cell in cells:
            found.append(_content(cell))
        for where, wanted in spaces:
            found += _values(where, wanted)
        return found

    return read


def _values(space: dict[str, Any], names: list[str]) -> list[Any]:
    return [space.get(name) for name in names]


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _names(code: types.CodeType) -> list[str]:
    names: dict[str, None] = {}
    codes = [code]
    while codes:
        one = codes.pop()
        names.update(dict.fromkeys(one.co_names))
        codes += [x for x in one.co_consts if isinstance(x, types.CodeType)]
    return list(names)
