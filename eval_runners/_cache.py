"""Activations of language models, and what else takes long to make, on disk under the name of all that decides it.

    <root>/<hash of the key>/        what was made for that key; used last when its folder was touched last
    <root>/<hash>.<process>.partial/ while it is being made

The root is the environment variable SAE_VARIANTS_CACHE, else ~/.cache/sae_variants/made. What was not used for longest
goes when all take more than SAE_VARIANTS_CACHE_GB (default 50).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_variants._errors import UsageError

ROOT, CAPACITY = "SAE_VARIANTS_CACHE", "SAE_VARIANTS_CACHE_GB"
ABANDONED_AFTER_SECONDS = 6 * 3600


def root() -> Path:
    return Path(os.environ.get(ROOT) or Path.home() / ".cache" / "sae_variants" / "made")


def capacity() -> float:
    """Bytes that the cache may take. UsageError if the environment says something else than a number."""
    text = os.environ.get(CAPACITY) or "50"
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not found >= 0:
        raise UsageError(f"{CAPACITY} must be a number of gigabytes, not {text!r}")
    return found * 1e9


def stored(key: dict[str, Any], make: Callable[[Path], None]) -> Path:
    """The folder that `make` filled for that key, now or earlier. A folder with a damaged file is made anew."""
    name = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=10).hexdigest()
    folder = root() / name
    if folder.is_dir() and (damaged := [path for path in folder.rglob("*") if not is_intact(path)]):
        print(f"warning: {damaged[0]} is damaged; what was in its folder is made again", file=sys.stderr)
        shutil.rmtree(folder)
    if not folder.is_dir():
        partial = root() / f"{name}.{os.getpid()}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            make(partial)
            (partial / "key.json").write_text(json.dumps(key, indent=2))
            if not folder.is_dir():  # another process may have been faster
                partial.rename(folder)
        except (OSError, RuntimeError) as error:
            # torch reports a disk that is full as a RuntimeError of its writer
            full = "no space left" if "PytorchStreamWriter" in str(error) else None
            reason = error.strerror if isinstance(error, OSError) else full
            if not reason:
                raise
            raise UsageError(f"cannot keep files in {root()}: {reason}; set {ROOT} to another folder") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    os.utime(folder)
    return folder


def is_intact(path: Path) -> bool:
    """Whether a file has all its bytes and the right ones: one of `torch.save`, a zip archive with sums, or JSON."""
    try:
        if path.suffix == ".pt":
            with zipfile.ZipFile(path) as archive:
                return archive.testzip() is None
        if path.suffix == ".json":
            json.loads(path.read_text())
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
    return True


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def evict(keep: list[Path]) -> None:
    """Removes what was not used for longest, but nothing of `keep`, until the rest fits; and abandoned leftovers."""
    limit, now = capacity(), time.time()
    folders = sorted((path for path in root().glob("*") if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for partial in [path for path in folders if path.suffix == ".partial"]:
        folders.remove(partial)
        if now - partial.stat().st_mtime > ABANDONED_AFTER_SECONDS:
            shutil.rmtree(partial, ignore_errors=True)
    sizes = {folder: size(folder) for folder in folders}
    for folder in folders:
        if sum(sizes.values()) <= limit:
            return
        if folder not in keep:
            shutil.rmtree(folder, ignore_errors=True)
            del sizes[folder]
