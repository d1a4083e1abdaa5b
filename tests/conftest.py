"""One thread a process: the tests' tensors are small, and pytest-xdist uses the cores."""

import torch

torch.set_num_threads(1)
