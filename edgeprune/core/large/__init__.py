"""Models that are too large to be in memory several times."""
