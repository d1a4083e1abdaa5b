"""Whether a field is still what it was: every object that Python code of ``f`` can reach, by identity.

A captured program holds what ``f`` computed with: weights come anew with every solve, but an attribute that was
replaced, a flag that was switched or a tensor that took the place of another one makes another field.
"""

from __future__ import annotations

import functools
import types
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
        self._identities = [*map(id, self._held)]
        self._flags = [x.requires_grad for x in self.tensors]

    def unchanged(self) -> bool:
        """Whether everything reachable is still the same objects, tensors asking for gradients as they did."""
        now = self._read()  # alive during the comparison, so that no identity is another object's
        if [*map(id, now)] != self._identities or not self.complete:
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
            elif isinstance(thing, dict):
                self._look(stack, thing.values)
                self._readers.append(thing.keys)
            elif isinstance(thing, list | tuple):
                self._look(stack, functools.partial(list, thing))
            elif isinstance(thing, set | frozenset):
                self._look(stack, functools.partial(sorted, thing, key=id))
            elif isinstance(thing, types.FunctionType):
                self._function(stack, thing)
            elif isinstance(thing, types.MethodType):
                stack += [thing.__self__, thing.__func__]
            elif isinstance(thing, types.ModuleType):
                continue
            elif type(thing).__module__.partition(".")[0] == "functools":
                stack += [thing.func, thing.args, thing.keywords] if hasattr(thing, "func") else []
            else:
                attributes = getattr(thing, "__dict__", None)
                if isinstance(attributes, dict):
                    stack.append(attributes)
                if not isinstance(thing, torch.nn.Module) or type(thing).__module__.partition(".")[0] != "torch":
                    stack += [
                        member
                        for base in type(thing).__mro__
                        if base.__module__.partition(".")[0] not in ("builtins", "torch", "typing", "abc")
                        for member in vars(base).values()
                        if isinstance(member, types.FunctionType | Tensor | property | staticmethod | classmethod)
                    ]
                for name in ("__wrapped__", "fget", "__func__"):
                    if isinstance(thing, property | staticmethod | classmethod):
                        stack.append(getattr(thing, name, None))

    def _look(self, stack: list[Any], reader: Callable[[], Any]) -> None:
        self._readers.append(reader)
        stack += reader()

    def _function(self, stack: list[Any], function: types.FunctionType) -> None:
        cells = function.__closure__ or ()
        if cells:
            self._look(stack, lambda: [_content(cell) for cell in cells])
        self._look(stack, lambda: [function.__code__, function.__defaults__, function.__kwdefaults__])
        if function.__module__.partition(".")[0] == "torch":
            return
        names = _names(function.__code__)
        space = function.__globals__
        used = [name for name in names if name in space]
        if used:
            self._look(stack, functools.partial(_values, space, used))
        modules = [space[name] for name in used if isinstance(space[name], types.ModuleType)]
        for module in modules:
            if module.__name__.partition(".")[0] == "torch":
                continue
            inside = [name for name in names if name in vars(module)]
            if inside:
                self._look(stack, functools.partial(_values, vars(module), inside))


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
