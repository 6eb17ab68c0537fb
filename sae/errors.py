"""Errors of the SAE package; each message says what was found and what to do."""

from __future__ import annotations


class SAEError(ValueError):
    """A checkpoint, a tensor or a setting is not what it has to be."""


class Diverged(SAEError):
    """Training produced a number that is not finite; the last good checkpoint is named."""
