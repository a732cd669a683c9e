"""Writing a file whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from sae_variants.common.errors import UsageError


def write_whole(path: Path, content: bytes | str, option: str) -> None:
    """Writes beside the file and moves it into place. UsageError, naming the option to change, if that cannot be.

    What is there and no file, such as /dev/stdout, is written to and stays what it is.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    data = content.encode() if isinstance(content, str) else content
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror}; give another {option}") from error


def writable(path: Path, option: str) -> None:
    """UsageError, before any work, if a file cannot be written there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; give another {option}") from error
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"cannot write {path}; give another {option}")
