"""Files and folders that appear complete or not at all.

Everything is written beside its destination under a temporary name and moved into place at the end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    from filelock import SoftFileLease

CLAIM = ".claim"
"""Ending of the file by which a process claims a file or folder."""
LEASE_SECONDS = 60.0
"""A claim that its owner did not renew for so long is taken over; it is renewed three times as often."""


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; the file replaces `path` at the end, or is removed after an error."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes | str, option: str) -> None:
    """Write a whole file.

    Args:
        path: Destination. Anything but a regular file, such as /dev/stdout, is written to directly.
        content: What to write.
        option: Command-line option that sets the path, for the error message.

    Raises:
        UsageError: The file cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as partial:
            partial.write_bytes(data)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; give another {option}") from error


def check_file_writable(path: Path, option: str) -> None:
    """Raise a UsageError, before any work, if a file cannot be written; `option` is the one that sets the path."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; give another {option}") from error
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"cannot write {path}; give another {option}")


def check_folder_writable(root: Path, option: str = "--output", purpose: str = "write results to") -> Path:
    """Create a folder if necessary and return it.

    Args:
        root: The folder.
        option: Command-line option that sets it, for the error message.
        purpose: What is done with it, for the error message, too.

    Raises:
        UsageError: It cannot be written to.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / f".probe-{os.getpid()}"
        try:
            probe.write_bytes(bytes(2**20))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot {purpose} {root}: {error.strerror}; give another {option}") from error
    return root


@contextlib.contextmanager
def claimed(path: Path, timeout: float = -1) -> Iterator[None]:
    """Reserve a file or folder for this process, among all processes on all hosts that see the file system.

    The claim of a process that died is taken over: at once on its host, on others when this process, which may ask
    again and again, has seen it for `LEASE_SECONDS` without a renewal.

    Args:
        path: The file or folder; it need not exist.
        timeout: Seconds to wait for another process; without limit if negative.

    Raises:
        filelock.Timeout: Another process, or this one, has claimed it.
    """
    from filelock import Timeout

    lease = _lease(claim_of(path), LEASE_SECONDS)
    if lease.is_locked:
        raise Timeout(lease.lock_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    with lease.acquire(timeout=timeout):
        yield


@cache
def _lease(claim: Path, seconds: float) -> SoftFileLease:
    """Return this process's lease of a claim, always the same, because it remembers since when it saw no renewal."""
    from filelock import SoftFileLease

    return SoftFileLease(claim, lease_duration=seconds)


def claim_of(path: Path) -> Path:
    """Return the file by which a process claims a file or folder."""
    return path.with_name(path.name + CLAIM)


def is_claimed(path: Path) -> bool:
    """Return whether a living process has claimed a file or folder."""
    from filelock import Timeout

    if not claim_of(path).exists():
        return False
    try:
        with claimed(path, timeout=0):
            return False
    except Timeout:
        return True


def claim_owner(path: Path) -> str:
    """Return the host and process that claimed a file or folder, such as `node7 (process 4711)`; empty if none did."""
    try:
        lines = claim_of(path).read_text().splitlines()
    except OSError:
        return ""
    fields = {name: value for name, _, value in (line.partition("=") for line in lines)}
    return f"{fields['host']} (process {fields['pid']})" if {"host", "pid"} <= fields.keys() else "another process"


@contextlib.contextmanager
def new_folder(folder: Path, option: str = "--trained") -> Iterator[Path]:
    """Yield an empty temporary folder to write to; it replaces `folder` at the end, or is removed after an error.

    Args:
        folder: Destination.
        option: What sets the destination, for the error message.

    Raises:
        UsageError: The folder cannot be written, because the disk is full or a permission is missing.
    """
    from safetensors import SafetensorError

    partial = partial_of(folder)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UsageError(f"cannot write the SAE to {folder.parent}: {error}; give another {option}") from error
    replace_folder(folder, partial)


def replace_folder(folder: Path, new: Path) -> None:
    """Move a new folder to `folder`; the previous one is kept beside it meanwhile."""
    shutil.rmtree(backup_of(folder), ignore_errors=True)
    if folder.exists():
        folder.rename(backup_of(folder))
    new.rename(folder)
    shutil.rmtree(backup_of(folder), ignore_errors=True)


def restore_folder(folder: Path) -> None:
    """Move the previous folder back if a process died in `replace_folder`, before the new one was in its place."""
    if not folder.exists() and backup_of(folder).exists():
        backup_of(folder).rename(folder)


def remove_folder(folder: Path) -> None:
    """Remove a folder with everything that `new_folder` may have left beside it."""
    for path in (folder, partial_of(folder), backup_of(folder)):
        shutil.rmtree(path, ignore_errors=True)


def partial_of(folder: Path) -> Path:
    """Return where a new folder is written before it moves into place."""
    return folder.with_name(folder.name + ".partial")


def backup_of(folder: Path) -> Path:
    """Return where the previous folder is kept while a new one moves into place."""
    return folder.with_name(folder.name + ".old")
