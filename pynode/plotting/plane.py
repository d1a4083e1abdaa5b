"""Many dimensions on a sheet of paper."""

from __future__ import annotations

import torch
from torch import Tensor

from pynode.errors import InputError, explain


def principal_plane(points: Tensor) -> tuple[Tensor, Tensor]:
    """The plane that keeps most of the variance of some points.

    Parameters
    ----------
    points : Tensor
        Shape (N, D) with N >= 2 and D >= 2.

    Returns
    -------
    center : Tensor
        Mean of the points, shape (D,).
    directions : Tensor
        Two orthonormal vectors, shape (2, D), the one with the larger variance first, each with its largest entry
        positive.
    """
    if points.ndim != 2 or min(points.shape) < 2:
        raise InputError(
            explain(f"points have shape {tuple(points.shape)}", "shape (N, D) with N, D >= 2", "pass more points")
        )
    center = points.mean(dim=0)
    directions = torch.linalg.svd(points - center, full_matrices=False).Vh[:2]
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    return center, directions * largest.sign()
