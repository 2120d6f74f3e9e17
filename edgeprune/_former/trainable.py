"""Where models that were pickled before keep finding their class."""

from edgeprune.graph.training_flags import TrainableGraph

__all__ = ["TrainableGraph"]
