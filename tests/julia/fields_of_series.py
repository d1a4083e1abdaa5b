"""Fields driven by data: controlled equations, their Lie brackets, and gated recurrence in continuous time."""

from __future__ import annotations

import torch
from fields import FIELDS, Draw, Made, field
from torch import Tensor

from pynode.controls import HermiteControl, LinearControl, LogSignatureControl, NaturalCubicControl, RectilinearControl
from pynode.nn import ControlledField, GRUField, LieBracketField, MatrixField

__all__ = ["FIELDS"]


def series(draw: Draw) -> tuple[Tensor, Tensor]:
    """Times around those at which fields are evaluated; a value missing in each channel. In float32: paths are to have
    the same coefficients in both precisions."""
    x = draw.normal(3, 5, 2).float()
    x[0, 2, 0] = x[1, 1, 1] = torch.nan
    return torch.tensor([0.0, 0.25, 0.5, 1.0, 1.5]), x


@field
def controlled_by_lines(draw: Draw) -> Made:
    path = LinearControl(*series(draw)).to(draw.dtype)
    f = draw.module(lambda: ControlledField(MatrixField(4, 2, width=5)))
    return Made(f, draw.normal(3, 4), (path.knots, path.coefficients))


@field
def controlled_by_hermite_cubics_with_gradients(draw: Draw) -> Made:
    path = HermiteControl(*series(draw)).to(draw.dtype)
    f = draw.module(lambda: ControlledField(MatrixField(4, 2, width=5)))
    return Made(f, draw.normal(3, 4), (path.knots, path.coefficients.detach().requires_grad_()))


@field
def controlled_by_a_natural_spline(draw: Draw) -> Made:
    path = NaturalCubicControl(*series(draw)).to(draw.dtype)
    f = draw.module(lambda: ControlledField(MatrixField(4, 2, width=5)))
    return Made(f, draw.normal(3, 4), (path.knots, path.coefficients))


@field
def controlled_by_time_then_values(draw: Draw) -> Made:
    path = RectilinearControl(*series(draw)).to(draw.dtype)
    f = draw.module(lambda: ControlledField(MatrixField(4, 3, width=5)))
    return Made(f, draw.normal(3, 4), (path.knots, path.coefficients))


@field
def controlled_by_two_rows(draw: Draw) -> Made:
    path = LinearControl(torch.tensor([0.0, 1.5], dtype=draw.dtype), draw.normal(3, 2, 2))
    f = draw.module(lambda: ControlledField(MatrixField(4, 2, width=5)))
    return Made(f, draw.normal(3, 4), (path.knots, path.coefficients))


@field
def log_ode_of_depth_two(draw: Draw) -> Made:
    path = LogSignatureControl(*series(draw), 2).to(draw.dtype)
    f = draw.module(lambda: ControlledField(LieBracketField(MatrixField(4, 2, width=5))))
    return Made(f, draw.normal(3, 4), (path.knots, path.coefficients))


@field
def gated_recurrence(draw: Draw) -> Made:
    return Made(draw.module(lambda: GRUField(4)), draw.normal(3, 4))
