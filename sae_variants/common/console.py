"""Frame of every command: exit codes, one line for bad input, progress bars, and silence of the host packages."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from errno import ENOSPC, EROFS
from typing import TypeVar

from sae_variants.common.errors import UsageError

T = TypeVar("T")


def run_command(main: Callable[[], int | None]) -> None:
    """Run a command and exit; bad input exits with one line and code 2, Ctrl-C with code 130, without a traceback."""
    # Threads that spin while they wait make torch several times slower as soon as another process runs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    replace_unprintable()
    try:
        code = main() or 0
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues from what is finished", file=sys.stderr)
        code = 130
    except OSError as error:
        if error.errno is None or (error.filename is None and error.errno not in (ENOSPC, EROFS)):
            raise
        print(f"error: cannot use {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        code = 2
    sys.exit(code)


def replace_unprintable() -> None:
    """Let the terminal replace characters that its encoding lacks, such as ASCII or cp1252, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def hide_host_warnings() -> None:
    """Hide notices of SAELens, TransformerLens and datasets that a user of these commands cannot act on."""
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", message="Dataset is not tokenized")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
    for variable in ("HF_HUB_VERBOSITY", "DATASETS_VERBOSITY"):  # dozens of lines on retries before our one
        os.environ.setdefault(variable, "error")


def progress(items: Iterable[T], what: str) -> Iterator[T]:
    """Iterate over items with a progress bar titled `what`."""
    from tqdm import tqdm

    return iter(tqdm(items, desc=what, leave=False))
