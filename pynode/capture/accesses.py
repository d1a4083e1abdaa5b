"""What statements read and write."""

from __future__ import annotations

from pynode.capture.ir import Assign, Convolve, Loop, MatMul, Reduce, Scan, Statement, View, leaves


def reads(statement: Statement) -> list[View]:
    """The views whose elements it needs."""
    if isinstance(statement, Assign | Reduce | Scan):
        return [leaf.view for leaf in leaves(statement.expr)]
    if isinstance(statement, Loop):
        found = [leaf.view for store in statement.stores for expr in store.exprs for leaf in leaves(expr)]
        return found + [store.into for store in statement.stores if store.add]
    return [statement.a, statement.b] + ([statement.into] if isinstance(statement, MatMul) and statement.add else [])


def writes(statement: Statement) -> list[View]:
    """The views whose elements it changes."""
    if isinstance(statement, Assign):
        return []
    if isinstance(statement, Loop):
        return [store.into for store in statement.stores]
    if isinstance(statement, Convolve):
        return [statement.into, statement.columns]
    return [statement.into]
