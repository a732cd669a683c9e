"""Activations of language models, and what else takes long to make, on disk under the name of all that decides it.

    <root>/<hash of the key>/        what was made for that key; used last when its folder was touched last
    <root>/<hash>.<process>.partial/ while it is being made

The root is the environment variable SAE_VARIANTS_CACHE, else ~/.cache/sae_variants/made. What was not used for longest
goes when all take more than SAE_VARIANTS_CACHE_GB (default 50).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from sae_variants.common.errors import UsageError
from sae_variants.common.hashing import hash_value

ROOT, CAPACITY = "SAE_VARIANTS_CACHE", "SAE_VARIANTS_CACHE_GB"
MANIFEST, PARTIAL = "key.json", ".partial"


def cache_root() -> Path:
    return Path(os.environ.get(ROOT) or Path.home() / ".cache" / "sae_variants" / "made").absolute()


def cache_capacity() -> float:
    """Bytes that the cache may take. UsageError if the environment says something else than a number."""
    text = os.environ.get(CAPACITY) or "50"
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not found >= 0:
        raise UsageError(f"{CAPACITY} must be a number of gigabytes, not {text!r}")
    return found * 1e9


def cached_folder(key: dict[str, Any], make: Callable[[Path], None]) -> Path:
    """The folder that `make` filled for that key, now or earlier. A folder that lacks a byte is made anew."""
    name = hash_value(key, size=10)
    folder = cache_root() / name
    if folder.is_dir() and (harm := find_damage(folder)):
        print(f"warning: {folder}: {harm}; it is made again", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
    if not folder.is_dir():
        partial = cache_root() / f"{name}.{os.getpid()}{PARTIAL}"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            make(partial)
            files = {str(path.relative_to(partial)): _sum(path) for path in partial.rglob("*") if path.is_file()}
            (partial / MANIFEST).write_text(json.dumps({"key": key, "files": files}, indent=2))
            if not folder.is_dir():
                partial.rename(folder)
        except (OSError, RuntimeError) as error:
            # torch reports a disk that is full as a RuntimeError of its writer
            full = "no space left" if "PytorchStreamWriter" in str(error) else None
            reason = error.strerror if isinstance(error, OSError) else full
            if not reason:
                raise
            if not folder.is_dir():  # else another process was faster
                message = f"cannot keep files in {cache_root()}: {reason}; set {ROOT} to another folder"
                raise UsageError(message) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    os.utime(folder)
    return folder


@cache
def _sum_of(path: Path, size: int, changed: int) -> int:
    found = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            found = zlib.crc32(block, found)
    return found


def _sum(path: Path) -> list[int]:
    """Size and checksum; read once per process and state of the file."""
    found = path.stat()
    return [found.st_size, _sum_of(path.resolve(), found.st_size, found.st_mtime_ns)]


def find_damage(folder: Path) -> str | None:
    """What is wrong with a folder, if anything: a file that is gone, cut or changed, or no list of files."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        for name, expected in files.items():
            if not (folder / name).is_file():
                return f"{name} is gone"
            if _sum(folder / name) != expected:
                return f"{name} is damaged"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    return None


def folder_size(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return 0


def evict_unused(keep: list[Path]) -> None:
    """Removes what was not used for longest, but nothing of `keep`, until the rest fits; and what kills left."""
    limit = cache_capacity()
    ages: dict[Path, float] = {}
    for path in cache_root().glob("*"):
        with contextlib.suppress(OSError):  # another process may remove it
            if path.suffix == PARTIAL and not _is_alive(path):
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix != PARTIAL and path.is_dir():
                ages[path] = path.stat().st_mtime
    sizes = {folder: folder_size(folder) for folder in ages}
    for folder in sorted(ages, key=lambda path: ages[path]):
        if sum(sizes.values()) <= limit:
            return
        if folder not in keep:
            shutil.rmtree(folder, ignore_errors=True)
            del sizes[folder]


def _is_alive(partial: Path) -> bool:
    """Whether the process that makes a folder still runs."""
    try:
        os.kill(int(partial.stem.rpartition(".")[2]), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
