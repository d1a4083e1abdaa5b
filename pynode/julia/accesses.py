"""What statements read and write."""

from __future__ import annotations

from pynode.julia.ir import Assign, Loop, MatMul, Reduce, Statement, View, leaves


def reads(statement: Statement) -> list[View]:
    if isinstance(statement, Assign):
        return [leaf.view for leaf in leaves(statement.expr)]
    if isinstance(statement, Loop):
        found = [leaf.view for store in statement.stores for leaf in leaves(store.expr)]
        return found + [store.into for store in statement.stores if store.add]
    if isinstance(statement, Reduce):
        return [leaf.view for leaf in leaves(statement.expr)] + ([statement.into] if statement.add else [])
    if isinstance(statement, MatMul):
        return [statement.a, statement.b] + ([statement.into] if statement.add else [])
    return statement.views + ([statement.into] if statement.reads_into else [])


def writes(statement: Statement) -> list[View]:
    if isinstance(statement, Assign):
        return []
    if isinstance(statement, Loop):
        return [store.into for store in statement.stores]
    return [statement.into]
