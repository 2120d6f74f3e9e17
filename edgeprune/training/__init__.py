"""Fine-tuning and distillation of a smaller model, on one process or several."""

from edgeprune.training.loop import fine_tune
from edgeprune.training.recipe import Recipe, Trained
from edgeprune.training.setup import Extras

__all__ = ["Extras", "Recipe", "Trained", "fine_tune"]
