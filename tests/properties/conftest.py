"""Two hypothesis profiles: few fixed examples for every run of the tests, and ``long``, thousands of random ones.

``PYNODE_HYPOTHESIS_PROFILE=long`` (or ``--hypothesis-profile=long`` with this folder as pytest's argument) chooses the
second; its seed is printed, and ``--hypothesis-seed=N`` repeats it.
"""

from __future__ import annotations

import os
import secrets

import pytest

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
QUIET = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large]
SEED = "--hypothesis-seed"

# Derandomized examples follow from the test's source: all workers of pytest-xdist draw the same.
hypothesis.settings.register_profile(
    "few", max_examples=6, derandomize=True, deadline=None, database=None, suppress_health_check=QUIET
)
hypothesis.settings.register_profile(
    "long",
    max_examples=300,
    derandomize=False,
    deadline=None,
    database=None,
    suppress_health_check=QUIET,
)
CHOSEN = os.environ.get("PYNODE_HYPOTHESIS_PROFILE", "few")
hypothesis.settings.load_profile(CHOSEN)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """A seed that can be printed, where the profile is random; before hypothesis reads it."""
    profile = config.getoption("--hypothesis-profile", None) or CHOSEN
    if profile == "long" and config.getoption(SEED, None) is None:
        config.option.__dict__[SEED] = str(secrets.randbelow(2**32))


def pytest_report_header(config: pytest.Config) -> str:
    seed = config.getoption(SEED, None)
    return "examples: derandomized" if seed is None else f"examples: random, {SEED}={seed}"
