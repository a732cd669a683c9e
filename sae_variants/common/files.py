"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from sae_variants.common.errors import UsageError


def write_atomically(path: Path, content: bytes | str, option: str) -> None:
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


def check_file_writable(path: Path, option: str) -> None:
    """UsageError, before any work, if a file cannot be written there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; give another {option}") from error
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"cannot write {path}; give another {option}")


def check_folder_writable(root: Path) -> Path:
    """The folder, made if need be. UsageError, before any work, if nothing can be written to it."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / f".probe-{os.getpid()}"
        try:
            probe.write_bytes(bytes(2**20))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write results to {root}: {error.strerror}; give another --output") from error
    return root


@contextlib.contextmanager
def new_folder(partial: Path) -> Iterator[None]:
    """A fresh folder to write to; if that fails (a full disk, no permission) it is removed and the place is named."""
    from safetensors import SafetensorError

    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UsageError(f"cannot write the SAE to {partial.parent}: {error}; give another --trained") from error


def backup_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".old")


def replace_folder(folder: Path, new: Path) -> None:
    """Puts the new folder in the place of the old one, which stands beside it meanwhile."""
    shutil.rmtree(backup_of(folder), ignore_errors=True)
    if folder.exists():
        folder.rename(backup_of(folder))
    new.rename(folder)
    shutil.rmtree(backup_of(folder), ignore_errors=True)
