"""Everything global that a solve could leave changed: of torch, of Python, of pynode, and of given modules."""

from __future__ import annotations

import gc
import hashlib
import signal
import sys
import threading
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pynode import known_fields, matmul_precision

_MODULE_HOOKS = [name for name in vars(nn.Module()) if name.endswith(("_hooks", "_hooks_with_kwargs"))]
_GLOBAL_HOOKS = [
    name
    for name in vars(nn.modules.module)
    if name.startswith("_global") and isinstance(getattr(nn.modules.module, name), dict)
]
_DEVICES = ("cpu", "cuda")
#: What tracers replace while they trace.
_PATCHED: list[tuple[Any, str]] = [
    *((nn.Module, name) for name in ("__call__", "__getattr__", "__setattr__", "forward")),
    *((torch, name) for name in ("tanh", "ones", "zeros", "empty", "tensor", "cond", "Tensor")),
    *((Tensor, name) for name in ("__add__", "__bool__", "item", "tolist", "__init__", "requires_grad_", "backward")),
    *((torch.autograd, name) for name in ("grad", "backward")),
    (torch.fx._symbolic_trace, "is_fx_tracing"),
]


def _free(lock: Any) -> bool:
    """Whether a lock can be had by another thread."""
    found: list[bool] = []

    def look() -> None:
        got = lock.acquire(timeout=10.0)
        if got:
            lock.release()
        found.append(got)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found[0]


def _of_torch() -> dict[str, Any]:
    functorch = torch._C._functorch
    state: dict[str, Any] = {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "anomaly": (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "multithreaded backward": torch.autograd.is_multithreading_enabled(),
        "graph task": torch._C._current_graph_task_id(),
        "function modes": torch._C._len_torch_function_stack(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "disabled torch function": torch._C._is_torch_function_enabled(),
        "saved tensor hooks": torch._C._autograd._top_saved_tensors_default_hooks(True) is None,
        "saved tensor hooks allowed": torch._C._autograd._saved_tensors_hooks_is_enabled(),
        "functorch": functorch.get_dynamic_layer_stack_depth(),
        "functorch functions": functorch.get_single_level_autograd_function_allowed(),
        "forward AD": torch.autograd.forward_ad._current_level,
        "view replay": torch._C._is_view_replay_enabled(),
        "matmul precision": matmul_precision._read(),
        "global hooks": {name: list(getattr(nn.modules.module, name)) for name in _GLOBAL_HOOKS},
        "random numbers": hashlib.sha1(torch.get_rng_state().numpy().tobytes()).hexdigest(),
        "sdp": (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()),
        "compiling": torch.compiler.is_compiling(),
        "eval frame": torch._C._dynamo.eval_frame.get_eval_frame_callback() is None,
        "patched": [id(getattr(owner, name)) for owner, name in _PATCHED if name in vars(owner)],
    }
    for device in _DEVICES:
        state[f"autocast {device}"] = (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
    state["autocast cache"] = torch.is_autocast_cache_enabled()
    # The count of contexts is read by leaving the last one.
    torch.autocast_increment_nesting()
    state["autocast nesting"] = torch.autocast_decrement_nesting()
    if "torch._dynamo" in sys.modules:
        from torch._guards import CompileContext, TracingContext

        state["dynamo"] = (CompileContext.try_get() is None, TracingContext.try_get() is None)
    return state


def _of_python() -> dict[str, Any]:
    return {
        "signals": [signal.getsignal(x) for x in (signal.SIGINT, signal.SIGALRM, signal.SIGTERM, signal.SIGSEGV)],
        "masked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        # Those for everything: modules that are imported meanwhile add some of their own.
        "warnings": [x for x in warnings.filters if x[1] is None and x[2] in (Warning, UserWarning)],
        "trace": (sys.gettrace(), sys.getprofile()),
        "recursion": sys.getrecursionlimit(),
        "gc": (gc.isenabled(), gc.get_threshold(), gc.isenabled()),
        "numpy": np.geterr(),
        "thread names": sorted(x.name for x in threading.enumerate()),
        "streams": (id(sys.stdout), id(sys.stderr), id(sys.excepthook), id(sys.unraisablehook)),
    }


def _of_pynode() -> dict[str, Any]:
    state: dict[str, Any] = {"tracing lock": _free(known_fields._TRACING)}
    routes, runtime = sys.modules.get("pynode.julia.routes"), sys.modules.get("pynode.julia.runtime")
    if routes is not None:
        state["forced routes"] = list(routes._FORCED)
    if runtime is not None:
        state["julia's start"] = _free(runtime._START)
        if runtime.started():
            state["julia's lock"] = _free(runtime.julia()._lock)
    return state


def library_state(modules: Iterable[nn.Module] = (), tensors: Iterable[Tensor] = ()) -> dict[str, Any]:
    """A snapshot to compare by ``==``: settings of torch and Python, pynode's locks, hooks of ``modules`` and of all
    ``tensors`` and parameters, and whether these require a gradient."""
    modules, tensors = list(modules), list(tensors)
    state = _of_torch() | _of_python() | _of_pynode()
    every = [part for module in modules for part in module.modules()]
    tensors += [x for module in modules for x in (*module.parameters(), *module.buffers())]
    state["module hooks"] = [(name, list(getattr(part, name))) for part in every for name in _MODULE_HOOKS]
    state["training"] = [part.training for part in every]
    state["own attributes"] = [sorted(vars(part)) for part in every]
    state["tensor hooks"] = [
        (list(x._backward_hooks or ()), list(x._post_accumulate_grad_hooks or ()) if x.is_leaf else []) for x in tensors
    ]
    state["require gradients"] = [x.requires_grad for x in tensors]
    return state


def differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What is not as it was, for a message."""
    return {k: (before.get(k), after.get(k)) for k in {*before, *after} if before.get(k) != after.get(k)}
