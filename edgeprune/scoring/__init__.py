"""What is lost when units or branches go (docs/scoring.md)."""

from edgeprune.scoring.magnitude import Scores, branches_of
from edgeprune.scoring.registry import CRITERIA, score

__all__ = ["CRITERIA", "Scores", "branches_of", "score"]
