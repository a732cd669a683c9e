"""The frame of every command: exit codes, one line for bad input, progress bars, quiet hosts."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from sae_variants.common.errors import UsageError


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


def hide_host_warnings() -> None:
    """Notices of SAELens, TransformerLens and datasets that a user of these commands can do nothing about."""

    if not sys.warnoptions:
        warnings.filterwarnings("ignore", message="Dataset is not tokenized")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)


T = TypeVar("T")


def progress(items: Iterable[T], what: str) -> Iterator[T]:
    from tqdm import tqdm

    return iter(tqdm(items, desc=what, leave=False))
