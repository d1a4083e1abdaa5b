"""These tests compile C++."""

from __future__ import annotations

from pathlib import Path

import pytest

from pynode import UnsupportedError
from pynode.cpp.compile import compiler


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    try:
        compiler()
    except UnsupportedError as error:
        here = Path(__file__).parent
        for item in items:
            if here in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=str(error)))
