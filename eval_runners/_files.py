"""Writing a file whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from sae_variants._errors import UsageError


def write_whole(path: Path, content: bytes | str, option: str) -> None:
    """Writes beside the file and moves it into place. UsageError, naming the option to change, if that cannot be."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror}; give another {option}") from error
