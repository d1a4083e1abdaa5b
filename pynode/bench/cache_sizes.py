"""How much pynode, and what it stands on, keeps for later."""

from __future__ import annotations

import sys
from typing import Any


def function_caches() -> dict[str, Any]:
    """Every function of pynode that ``functools`` caches, by its full name."""
    found = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != "pynode" or module is None:
            continue
        for key, value in list(vars(module).items()):
            if hasattr(value, "cache_info") and getattr(value, "__module__", None) == name:
                found[f"{name}.{key}"] = value
    return found


def cache_sizes() -> dict[str, int]:
    """Entries by cache: results of functions, known fields, programs, lanes, compiled graphs; and of Julia, where it
    runs, the objects that it holds for Python."""
    from pynode import known_fields
    from pynode.cpp import backend
    from pynode.native import compiled

    entries = [entry for kept in list(known_fields._ENTRIES.values()) for entry in kept]
    sizes = {
        "functions": sum(x.cache_info().currsize for x in function_caches().values()),
        "fields": len(known_fields._ENTRIES),
        "signatures": len(entries),
        "programs": sum(len(entry.programs) for entry in entries),
        "lanes": sum(len(lanes) for entry in entries for lanes in list(entry.lanes.values())),
        "graphs": sum(len(kept) for kept in list(compiled._CACHE.values())),
        "trusted": len(compiled._TRUSTED),
        "warned": len(backend._WARNED),
    }
    if sizes["graphs"]:
        import torch

        count: Any = torch._C._dynamo.eval_frame._get_total_cache_entry_count
        steps: list[Any] = [step for kept in list(compiled._CACHE.values()) for step in kept.values()]
        sizes["dynamo"] = sum(int(count(step._torchdynamo_orig_callable.__code__)) for step in steps)
    runtime = sys.modules.get("pynode.julia.runtime")
    if runtime is not None and runtime.started():
        from pynode.julia import routes

        engine = runtime.julia()
        sizes["julia's objects"] = int(engine.main.PyNode.HELD.__len__())
        sizes["julia's names"] = len(engine._settings)
        sizes["julia's programs"] = len(routes._PROGRAMS)
    return sizes
