"""Errors of a user in one line: a `UsageError` names the input and the remedy, and a command exits with code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST_NAMES = 40
"""An error lists at most so many known names."""


class UsageError(ValueError):
    """The input cannot be used; the message names it and says what to do instead."""


def check_name(what: str, name: str, known: Iterable[str]) -> str:
    """Return `name` if it is known.

    Args:
        what: The kind of thing that the name stands for, such as `target`.
        name: The name to check.
        known: All known names.

    Raises:
        UsageError: The name is unknown; the message lists the nearest names and the known ones.
    """
    known = sorted(known)
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
    more = f", and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
    raise UsageError(f"unknown {what} {name!r}: {hint}known: {', '.join(known[:MOST_NAMES])}{more}")


def describe_error(error: BaseException, limit: int = 500) -> str:
    """Return the whole message of any exception in one line of at most `limit` characters.

    Lines are joined, so that the keys and shapes of PyTorch's errors are kept; a type that says more than its message,
    such as KeyError, is put before it.
    """
    message = " ".join(str(error).split())
    if not message or isinstance(error, LookupError | AttributeError | AssertionError):
        message = f"{type(error).__name__}: {message}".rstrip(": ")
    return message if len(message) <= limit else f"{message[: limit - 4]} ..."
