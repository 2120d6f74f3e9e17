"""Examples that are run from the repository's root."""
