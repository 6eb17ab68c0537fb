"""Errors that a user can act on, and the exit codes they end with."""

from __future__ import annotations


class AutointerpError(Exception):
    """Something we can name went wrong. Printed as one line, without a traceback."""

    exit_code = 1


class UserError(AutointerpError):
    """Wrong usage or bad input. The message says what, where, and what to do about it."""

    exit_code = 2


class DiskFull(AutointerpError):
    """No room left; what was finished is on disk, and the same command goes on from it."""

    exit_code = 1


class NoLatents(UserError):
    """None of the latents that were asked for can be explained: they are dead, or too rare."""


class Damaged(UserError):
    """A file is not what was written: cut off, altered, or of something else."""


class BudgetReached(AutointerpError):
    """The budget is spent; everything paid for is on disk."""

    exit_code = 3


class ServerGone(AutointerpError):
    """No further request can succeed. What was finished is kept."""

    exit_code = 1


class TooManyFailures(AutointerpError):
    """The run finished, but more answers failed than `--max-failed` allows."""

    exit_code = 4
