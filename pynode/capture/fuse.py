"""Passes over a function's statements: loops merged, what nobody reads dropped, workspace shared.

Two loops over one shape become one where every element they share is the same element in both. What the first stored is
then at hand for the second, and a store that nobody else reads is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pynode.capture.accesses import reads, writes
from pynode.capture.ir import Assign, Buffer, Expr, Gather, Load, Loop, Op, Scalar, Statement, Store, View, leaves

#: Instructions beyond which loops are not merged.
_LARGE = 200


def arranged(statements: list[Statement]) -> list[Statement]:
    """The statements, fewer of them."""
    return _without_unread(_merged(_without_unread(statements)))


def _root(view: View) -> Buffer:
    return view.buffer.resolved()[0]


def _without_unread(statements: list[Statement]) -> list[Statement]:
    """Drop stores into workspace that nobody reads afterwards, last statement first."""
    wanted: set[int] = set()
    kept: list[Statement] = []
    for statement in reversed(statements):
        targets = writes(statement)
        if isinstance(statement, Loop):
            statement.stores = [
                s for s in statement.stores if _root(s.into).kind != "work" or id(_root(s.into)) in wanted
            ]
            if not statement.stores:
                continue
        elif targets and _root(targets[0]).kind == "work" and id(_root(targets[0])) not in wanted:
            continue
        wanted |= {id(_root(view)) for view in reads(statement)}
        kept.append(statement)
    return kept[::-1]


def _place(view: View) -> tuple[int, int, tuple[int, ...]]:
    buffer, offset = view.buffer.resolved()
    strides = tuple(s for s, n in zip(view.strides, view.shape, strict=True) if n > 1)
    return id(buffer), offset + view.offset, strides


def _injective(view: View) -> bool:
    """Whether different indices are different elements."""
    pairs = sorted((s, n) for s, n in zip(view.strides, view.shape, strict=True) if n > 1)
    reach = 0
    for stride, n in pairs:
        if stride <= reach:
            return False
        reach += stride * (n - 1)
    return True


def _conflict(first: Statement, second: Statement) -> bool:
    """Whether their order matters."""
    a_writes, b_writes = ({id(_root(v)) for v in writes(s)} for s in (first, second))
    a_reads, b_reads = ({id(_root(v)) for v in reads(s)} for s in (first, second))
    return bool(a_writes & (b_reads | b_writes) or a_reads & b_writes)


def _mergeable(first: Loop, second: Loop) -> bool:
    """Whether all memory that one of them writes and the other one uses is used element by element."""
    if first.shape != second.shape or any(s.terms or s.add for s in (*first.stores, *second.stores)):
        return False
    written = [view for loop in (first, second) for view in writes(loop)]
    for view in written:
        same = [v for loop in (first, second) for v in (*reads(loop), *writes(loop)) if _root(v) is _root(view)]
        others = [v for v in same if v is not view]
        apart = [v for v in others if _place(v) != _place(view) and _overlap(v, view)]
        if apart or (others and not _injective(view)):
            return False
    return not any(id(_root(v)) in {id(_root(w)) for w in written} for v in _shifted(first) + _shifted(second))


def _shifted(loop: Loop) -> list[View]:
    return [x.view for s in loop.stores for e in s.exprs for x in leaves(e) if isinstance(x, Gather)]


def _overlap(a: View, b: View) -> bool:
    """Whether two views of one buffer may share an element."""

    def span(v: View) -> tuple[int, int]:
        start = v.buffer.resolved()[1] + v.offset
        ends = [s * (n - 1) for s, n in zip(v.strides, v.shape, strict=True)]
        return start + sum(min(e, 0) for e in ends), start + sum(max(e, 0) for e in ends)

    (a0, a1), (b0, b1) = span(a), span(b)
    return a0 <= b1 and b0 <= a1


def _merged(statements: list[Statement]) -> list[Statement]:
    done: list[Statement] = []
    for statement in statements:
        at = _partner(done, statement) if isinstance(statement, Loop) else None
        if at is None:
            done.append(statement)
            continue
        first = done[at]
        assert isinstance(first, Loop)
        assert isinstance(statement, Loop)
        stored = {_place(s.into): s.expr for s in first.stores}
        stores = [Store(s.into, _forwarded(s.expr, stored)) for s in statement.stores]
        done[at] = Loop(first.shape, [*first.stores, *stores], first.note or statement.note)
    return done


def _partner(done: Sequence[Statement], loop: Loop) -> int | None:
    """The earlier loop that ``loop`` can be moved into."""
    for at in reversed(range(len(done))):
        candidate = done[at]
        if isinstance(candidate, Loop) and _mergeable(candidate, loop):
            price = sum(_price(s.expr, set()) for s in (*candidate.stores, *loop.stores))
            if price <= _LARGE:
                return at
        if _conflict(candidate, loop) or (isinstance(candidate, Assign) and _uses(loop, candidate.target)):
            return None
    return None


def _uses(loop: Loop, local: Scalar) -> bool:
    """Whether a local variable of the function occurs in the loop."""
    stack: list[Expr] = [expr for store in loop.stores for expr in store.exprs]
    seen: set[int] = set()
    while stack:
        expr = stack.pop()
        if id(expr) in seen:
            continue
        seen.add(id(expr))
        if isinstance(expr, Scalar) and expr.name == local.name:
            return True
        if isinstance(expr, Op):
            stack += expr.args
        elif isinstance(expr, Gather):
            stack += [index for _, _, index in expr.terms]
    return False


def _price(expr: Expr, seen: set[int]) -> int:
    """Instructions, shared ones counted once."""
    if id(expr) in seen or not isinstance(expr, Op):
        return 0
    seen.add(id(expr))
    return 1 + sum(_price(x, seen) for x in expr.args)


def _forwarded(
    expr: Expr, stored: dict[tuple[int, int, tuple[int, ...]], Expr], memo: dict[int, Expr] | None = None
) -> Expr:
    """The expression with loads of what the same loop has stored replaced by it."""
    memo = {} if memo is None else memo
    if id(expr) in memo:
        return memo[id(expr)]
    new = expr
    if isinstance(expr, Load) and _place(expr.view) in stored:
        new = stored[_place(expr.view)]
    elif isinstance(expr, Op):
        new = Op(expr.template, tuple(_forwarded(x, stored, memo) for x in expr.args), expr.dtype, expr.cost)
    memo[id(expr)] = new
    return new


class Workspace:
    """Arrays that functions share: each holds what does not live at the same time."""

    def __init__(self) -> None:
        self.slots: list[Buffer] = []

    def place(self, statements: Sequence[Statement]) -> None:
        """Give each of a function's workspace buffers a home."""
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        buffers: dict[int, Buffer] = {}
        for i, statement in enumerate(statements):
            for view in (*reads(statement), *writes(statement)):
                buffer = _root(view)
                if buffer.kind == "work":
                    buffers[id(buffer)] = buffer
                    first.setdefault(id(buffer), i)
                    last[id(buffer)] = i
        free = list(self.slots)
        busy: list[tuple[int, Buffer]] = []
        for key in sorted(buffers, key=lambda k: first[k]):
            buffer = buffers[key]
            free += [slot for end, slot in busy if end < first[key]]
            busy = [(end, slot) for end, slot in busy if end >= first[key]]
            fitting = [slot for slot in free if slot.dtype == buffer.dtype]
            if fitting:
                # The smallest that is large enough, or else the largest, which grows.
                enough = [slot for slot in fitting if slot.size >= buffer.size]
                slot = min(enough, key=lambda s: s.size) if enough else max(fitting, key=lambda s: s.size)
                free = [other for other in free if other is not slot]
            else:
                letter = {torch.bool: "b", torch.int64: "i"}.get(buffer.dtype, "w")
                slot = Buffer(f"{letter}{len(self.slots) + 1}", 0, buffer.dtype, "slot")
                self.slots.append(slot)
            slot.size = max(slot.size, buffer.size)
            buffer.home = (slot, 0)
            busy.append((last[key], slot))
