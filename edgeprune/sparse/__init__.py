"""Pruning of single weights: zeros where weights were, shapes as before (docs/sparsity.md)."""
