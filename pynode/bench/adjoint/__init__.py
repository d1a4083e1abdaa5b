"""Gradients of large problems: see :mod:`pynode.bench.adjoint.experiment`."""
