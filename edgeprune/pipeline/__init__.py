"""The whole way of a run, step by step (docs/architecture.md)."""
