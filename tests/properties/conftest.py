"""Two hypothesis profiles: few fixed examples for every run of the tests, and ``long``, thousands of random ones.

``PYNODE_HYPOTHESIS_PROFILE=long`` (or ``--hypothesis-profile=long`` with this folder as pytest's argument) chooses the
second; its seed is printed, and ``--hypothesis-seed=N`` repeats it.
"""

from __future__ import annotations

import os
import secrets

import pytest

CHOSEN = os.environ.get("PYNODE_HYPOTHESIS_PROFILE", "few")

try:
    from hypothesis import HealthCheck, settings
except ImportError:
    collect_ignore_glob = ["test_property_*.py"]
else:
    common = {
        "deadline": None,
        "database": None,
        "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
    }
    # Derandomized examples follow from the test's source: all workers of pytest-xdist draw the same.
    settings.register_profile("few", max_examples=4, derandomize=True, **common)
    settings.register_profile("long", max_examples=100, **common)
    settings.load_profile(CHOSEN)


def _random(config: pytest.Config) -> bool:
    return (config.getoption("hypothesis_profile", None) or CHOSEN) == "long"


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """A seed that can be printed, where the profile is random; before hypothesis reads it."""
    if _random(config) and getattr(config.option, "hypothesis_seed", None) is None:
        config.option.hypothesis_seed = str(secrets.randbelow(2**32))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if _random(config):
        terminalreporter.write_line(f"properties: random examples, --hypothesis-seed={config.option.hypothesis_seed}")
