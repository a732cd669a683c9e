"""What a user did wrong, in one line: a `UsageError` names the input and the mend; a command ends with exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """The input cannot be used; the message says which, and what to do."""


def check_name(what: str, name: str, known: Iterable[str]) -> str:
    """`name` if it is known, else a UsageError with the nearest names and the whole list."""
    known = sorted(known)
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
    raise UsageError(f"unknown {what} {name!r}: {hint}known: {', '.join(known)}")
