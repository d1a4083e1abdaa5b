"""How many examples a property gets: a share of its profile's."""

from __future__ import annotations

from hypothesis import settings


def share(part: float) -> settings:
    """``part`` of the examples of the profile that is in use."""
    return settings(max_examples=max(1, round(part * settings().max_examples)))
