"""Values as JSON allows them."""

from __future__ import annotations

import math
from typing import Any


def strict_json(value: Any) -> Any:
    """``value`` with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: strict_json(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
