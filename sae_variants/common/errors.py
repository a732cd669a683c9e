"""What a user did wrong, in one line: a `UsageError` names the input and the mend; a command ends with exit code 2."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Iterable


class UsageError(ValueError):
    """The input cannot be used; the message says which, and what to do."""


def one_of(what: str, name: str, known: Iterable[str]) -> str:
    """`name` if it is known, else a UsageError with the nearest names and the whole list."""
    known = sorted(known)
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
    raise UsageError(f"unknown {what} {name!r}: {hint}known: {', '.join(known)}")


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command: bad input ends with one line and code 2, Ctrl-C with code 130, neither with a traceback."""
    # threads that spin while they wait make torch several times slower as soon as anything else runs on the machine
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = main() or 0
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:  # whoever reads has seen enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what is finished", file=sys.stderr)
        code = 130
    except OSError as error:
        if not isinstance(error, PermissionError | IsADirectoryError | NotADirectoryError) and error.errno not in (
            28,
            30,
        ):
            raise
        print(f"error: cannot use {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        code = 2
    sys.exit(code)
