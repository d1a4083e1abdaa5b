"""torchdyn.nn."""

from pynode.compat.torchdyn.nn.bases import (
    Chebychev,
    Fourier,
    GaussianRBF,
    MultiquadRBF,
    Polynomial,
    VanillaRBF,
)
from pynode.compat.torchdyn.nn.galerkin import GalConv2d, GalLayer, GalLinear
from pynode.compat.torchdyn.nn.node_layers import Augmenter, DataControl, DepthCat

__all__ = [
    "Augmenter",
    "Chebychev",
    "DataControl",
    "DepthCat",
    "Fourier",
    "GalConv2d",
    "GalLayer",
    "GalLinear",
    "GaussianRBF",
    "MultiquadRBF",
    "Polynomial",
    "VanillaRBF",
]
