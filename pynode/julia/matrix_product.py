"""Matrix products: one function of the prelude, ``product!``."""

from __future__ import annotations

_BLAS = """
# c = a b, or c + a b. Not by mul!, which compiles a kernel of its own for each combination of views before it calls
# BLAS: seconds, several times a program.
plain(x) = ('N', x)
plain(x::Transpose) = ('T', parent(x))
function product!(c, a, b, add = false)
    (ta, a), (tb, b) = plain(a), plain(b)
    BLAS.gemm!(ta, tb, one(T), a, b, T(add), c)
    return nothing
end
product!(c::Transpose, a, b, add = false) = product!(parent(c), transpose(b), transpose(a), add)
"""

_ANY_ARRAY = """
# c = a b, or c + a b
product!(c, a, b, add = false) = (mul!(c, a, b, true, add); nothing)
"""


def product(in_memory: bool) -> str:
    """The definition, for arrays in main memory or for any arrays."""
    return (_BLAS if in_memory else _ANY_ARRAY).strip("\n")
