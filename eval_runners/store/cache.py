"""A cache on disk of what takes long to compute, such as activations, under the hash of everything that decides it.

    <root>/<hash of the key>/   the files for that key; the folder is touched at every use
    <root>/<hash>.partial/      the same while a process fills it
    <root>/<hash>.lock          held by that process

The root is the environment variable SAE_VARIANTS_CACHE, else ~/.cache/sae_variants/made. When all folders take more
than SAE_VARIANTS_CACHE_GB (default 50), those that have not been used for longest are removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from sae_variants.common.errors import UsageError
from sae_variants.common.files import claimed, replace_folder
from sae_variants.common.hashing import hash_value

ROOT, CAPACITY = "SAE_VARIANTS_CACHE", "SAE_VARIANTS_CACHE_GB"
MANIFEST, PARTIAL = "key.json", ".partial"


def cache_root() -> Path:
    """The folder of the cache, as the environment names it."""
    return Path(os.environ.get(ROOT) or Path.home() / ".cache" / "sae_variants" / "made").absolute()


def cache_capacity() -> float:
    """Bytes that the cache may take.

    Raises:
        UsageError: the environment variable is not a number.
    """
    text = os.environ.get(CAPACITY) or "50"
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = -1.0
    if not gigabytes >= 0:
        raise UsageError(f"{CAPACITY} must be a number of gigabytes, not {text!r}")
    return gigabytes * 1e9


def cached_folder(key: Mapping[str, Any], fill: Callable[[Path], None]) -> Path:
    """The folder of a key, filled now if it is missing or damaged. No two processes fill the same folder at once.

    Args:
        key: everything that decides the files; JSON values.
        fill: writes the files to the empty folder that it is given.

    Raises:
        UsageError: the files cannot be written, such as to a full disk.
    """
    folder = cache_root() / hash_value(key, size=10)
    try:
        if not folder.is_dir() or find_damage(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with claimed(folder):
                _fill_if_needed(folder, key, fill)
        os.utime(folder)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError of its writer
        full = "no space left" if "PytorchStreamWriter" in str(error) else None
        reason = error.strerror if isinstance(error, OSError) else full
        if not reason:
            raise
        message = f"cannot keep files in {cache_root()}: {reason}; set {ROOT} to another folder"
        raise UsageError(message) from error
    return folder


def _fill_if_needed(folder: Path, key: Mapping[str, Any], fill: Callable[[Path], None]) -> None:
    """Fill a folder, unless another process did so while this process waited for the lock."""
    if folder.is_dir():
        damage = find_damage(folder)
        if not damage:
            return
        print(f"warning: {folder}: {damage}; it is computed again", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
    partial = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        fill(partial)
        files = {str(path.relative_to(partial)): _checksum(path) for path in partial.rglob("*") if path.is_file()}
        (partial / MANIFEST).write_text(json.dumps({"key": key, "files": files}, indent=2))
        replace_folder(folder, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@cache
def _crc32(path: Path, size: int, modified: int) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _checksum(path: Path) -> list[int]:
    """Size and CRC-32 of a file, which is read once per process and state of the file."""
    status = path.stat()
    return [status.st_size, _crc32(path.resolve(), status.st_size, status.st_mtime_ns)]


def find_damage(folder: Path) -> str | None:
    """The first damage of a folder, such as a file that is missing, cut or changed; None if it is whole."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        for name, expected in files.items():
            if not (folder / name).is_file():
                return f"{name} is gone"
            if _checksum(folder / name) != expected:
                return f"{name} is damaged"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    return None


def folder_size(folder: Path) -> int:
    """Bytes of all files in a folder; 0 if another process removes it meanwhile."""
    with contextlib.suppress(OSError):
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return 0


def evict_unused(keep: Collection[Path]) -> None:
    """Remove what killed processes left, then the folders that are unused for longest, until the rest fits.

    Args:
        keep: folders that are not removed.
    """
    limit = cache_capacity()
    last_used: dict[Path, float] = {}
    for path in cache_root().glob("*"):
        with contextlib.suppress(OSError):  # another process may remove it
            if path.suffix == PARTIAL:
                _remove_abandoned(path)
            elif path.is_dir():
                last_used[path] = path.stat().st_mtime
    sizes = {folder: folder_size(folder) for folder in last_used}
    for folder in sorted(last_used, key=lambda path: last_used[path]):
        if sum(sizes.values()) <= limit:
            return
        if folder not in keep:
            shutil.rmtree(folder, ignore_errors=True)
            del sizes[folder]


def _remove_abandoned(partial: Path) -> None:
    """Remove a folder that is not filled to the end, unless a process is filling it."""
    from filelock import Timeout

    with contextlib.suppress(Timeout), claimed(partial.with_suffix(""), timeout=0):
        shutil.rmtree(partial, ignore_errors=True)
