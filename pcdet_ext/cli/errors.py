"""Errors of the command line, beside those of configurations and data files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(ValueError):
    """A command that was called in a way that cannot work; it ends with exit code 2."""


class FailureError(RuntimeError):
    """A command that could not do what it should; it ends with exit code 1."""


@contextmanager
def wrong_use() -> Iterator[None]:
    """Around a function that raises ValueError for arguments that make no sense: these are then a UsageError."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error
