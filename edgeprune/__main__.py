"""`python -m edgeprune`."""

from edgeprune.cli import entry

entry()
