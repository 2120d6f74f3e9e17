"""The former place of edgeprune.graph.training_flags, for scripts that name it."""

from edgeprune.graph.training_flags import TrainableGraph

__all__ = ["TrainableGraph"]
