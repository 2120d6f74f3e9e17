"""What is lost when units or branches go (docs/scoring.md)."""

from edgeprune.scoring.criteria import CRITERIA, score
from edgeprune.scoring.magnitude import Scores, branches_of

__all__ = ["CRITERIA", "Scores", "branches_of", "score"]
