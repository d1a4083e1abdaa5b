"""How a rank ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import torch.distributed as dist


def leave(wrong: Sequence[object]) -> NoReturn:
    """End this rank, with a failure where something was ``wrong``.

    At once: threads of gloo may still hold tensors when the interpreter goes, and abort the process ("terminate called
    without an active exception", pytorch/pytorch#179291; on a busy machine most runs of torch's DDP alone).
    """
    dist.destroy_process_group()
    for item in wrong:
        print("WRONG", item, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1 if wrong else 0)
