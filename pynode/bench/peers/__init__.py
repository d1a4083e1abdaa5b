"""pynode beside every library that solves the same problem: see :mod:`pynode.bench.peers.experiment`."""
