"""Choosing widths and branches so that the budgets hold and least is lost (docs/solving.md)."""

from edgeprune.solve.problem import Limits, Losses, Problem, Reachable
from edgeprune.solve.solver import Solution, solve

__all__ = ["Limits", "Losses", "Problem", "Reachable", "Solution", "solve"]
