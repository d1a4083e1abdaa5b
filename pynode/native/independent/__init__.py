"""Independent stepping: every row of a batch has its own times, step sizes, error control and outcome.

All rows that are still running take one step attempt in the same calls of ``f``: a *round*. What steers a row (its
time, step size, controller history, next save point) are float64 numbers on the host, in NumPy arrays; states and
stages stay on the device. A round costs one transfer to the host, that of the error norms. A row that has finished, or
failed, leaves the arrays, so that ``f`` is never called with it again.
"""
