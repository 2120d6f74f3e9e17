"""The errors that EdgePrune raises on purpose, each with its exit code on the command line."""

from __future__ import annotations


class EdgePruneError(Exception):
    """Base of every deliberate error.

    `exit_code` is what the `edgeprune` command returns; 1 means an internal error.
    `told_elsewhere`: another process of this run met it, and says so.
    """

    exit_code: int = 1
    told_elsewhere: bool = False


class UserError(EdgePruneError):
    """Bad usage or bad input: the message is one line that says what, where and how to mend it."""

    exit_code = 2


class BudgetError(EdgePruneError):
    """The budgets cannot be met: the message says the best figure and what is in the way."""

    exit_code = 3


class ParityError(EdgePruneError):
    """The exported model does not compute what the PyTorch model computes."""

    exit_code = 4
