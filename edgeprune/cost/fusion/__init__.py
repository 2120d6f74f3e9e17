"""What a runtime makes of a model's ops: which of them become one kernel, and in which layout."""

from edgeprune.cost.fusion.fuse import ACTIVATIONS, VIEWS, fuse

__all__ = ["ACTIVATIONS", "VIEWS", "fuse"]
