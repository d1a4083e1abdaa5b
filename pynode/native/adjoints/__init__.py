"""Sensitivity algorithms of the torch backend, one a file."""
