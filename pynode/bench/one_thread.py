"""One thread for every library that can be told."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: What XLA reads when jax makes its first array: no threads inside an operation, and one beside them; and that memory
#: of a GPU is taken as it is needed, since torch is to have some too.
_XLA = {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "NPROC": "1",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread inside; and jax, unless the process has imported it before or the user has set its flags.

    NumPy's, SciPy's and Julia's threads are set by the environment before Python starts (``OMP_NUM_THREADS``,
    ``OPENBLAS_NUM_THREADS``); what each contestant then used is measured.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if "jax" not in sys.modules:
        for name, value in _XLA.items():
            os.environ.setdefault(name, value)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
