"""What holds for all tests."""

from __future__ import annotations

import pytest

from edgeprune.reconstruction import synthetic

#: Minutes in few tests: begun first, so that no process is left with them in the end.
LONG = ("test_random_networks.py", "test_ranks.py", "test_sweep.py", "test_example_vla.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(autouse=True, scope="session")
def few_samples_are_made_up() -> None:
    """Runs without data make fewer samples up, so that hundreds of runs don't take hours."""
    synthetic.WORK = 1.0e10
