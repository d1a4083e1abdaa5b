"""The SciML backend."""
