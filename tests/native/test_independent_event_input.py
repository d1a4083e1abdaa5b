"""What rows refuse of events and save options, and how it is told."""

from __future__ import annotations

import pytest
import torch
from test_independent import solve

import pynode
from pynode import Event

F64 = torch.float64


def rise(t, y):
    return torch.ones_like(y)


@pytest.mark.parametrize(
    ("event", "error", "message"),
    [
        (Event(lambda t, y: y[0] - 0.5), pynode.FieldError, r"events\[0\] returned shape \(1,\), called with 3 rows"),
        (Event(lambda t, y: y.sum() - 0.5), pynode.FieldError, r"returned shape \(\)"),
        (Event(lambda t, y: y[:, 0] > 0.5), pynode.FieldError, "not the comparison"),
        (Event(lambda t, y: torch.log(0.5 - y[:, 0])), pynode.FieldError, r"nan in row 0 at t = 0\."),
        (Event(lambda t, y: y[:, 0] - 0.5, effect=lambda t, y: y[:, 0]), pynode.FieldError, r"effect of events\[0\]"),
        ("ground", pynode.InputError, "events is 'ground'"),
    ],
)
def test_what_cannot_be_used_is_told(event, error, message):
    with pytest.raises(error, match=message):
        solve(rise, torch.zeros(3, 1, dtype=F64), [0.0, 1.0], events=event)


@pytest.mark.parametrize("option", [{"t0": True}, {"t1": True}, {"fn": lambda t, y: y}], ids=lambda x: next(iter(x)))
def test_save_options_that_rows_do_not_have_are_refused(option):
    with pytest.raises(pynode.UnsupportedError, match=f"SaveAt\\({next(iter(option))}=\\)"):
        solve(rise, torch.zeros(3, 1, dtype=F64), [0.0, 1.0], saveat=pynode.SaveAt(**option))


@pytest.mark.parametrize("limit", [0, 2.5, True])
def test_a_bound_on_events_that_is_none_is_refused(limit):
    with pytest.raises(pynode.InputError, match="max_events"):
        solve(
            rise, torch.zeros(3, 1, dtype=F64), [0.0, 1.0], events=Event(lambda t, y: y[:, 0] - 0.5), max_events=limit
        )
