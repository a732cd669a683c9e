"""Errors of a user in one line: a `UsageError` names the input and the remedy, and a command exits with code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """The input cannot be used; the message names it and says what to do instead."""


def check_name(what: str, name: str, known: Iterable[str]) -> str:
    """Return `name` if it is known.

    Args:
        what: The kind of thing that the name stands for, such as `target`.
        name: The name to check.
        known: All known names.

    Raises:
        UsageError: The name is unknown; the message lists the nearest names and all known ones.
    """
    known = sorted(known)
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
    raise UsageError(f"unknown {what} {name!r}: {hint}known: {', '.join(known)}")


def describe(error: BaseException, longest: int = 300) -> str:
    """Return an error's message in one line, with its type where the message alone would not be a reason."""
    text = " ".join(str(error).split())
    if not text or not isinstance(error, ValueError | OSError | RuntimeError | NotImplementedError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= longest else text[: longest - 1] + "…"
