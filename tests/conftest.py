"""What holds for all tests."""

from __future__ import annotations

import pytest

from edgeprune import synthetic


@pytest.fixture(autouse=True, scope="session")
def few_samples_are_made_up() -> None:
    """Runs without data make fewer samples up, so that hundreds of runs don't take hours."""
    synthetic.WORK = 1.0e10
