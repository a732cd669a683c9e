"""Short hashes of the content of files and of settings."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def hash_files(files: list[Path]) -> str:
    """Return sixteen hex digits that depend on the bytes of the files and their order."""
    digest = hashlib.blake2b(digest_size=8)
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def hash_value(value: Any, size: int = 6) -> str:
    """Return the hash of a value that JSON can represent; the order of keys does not matter.

    Args:
        value: Nested dicts, lists, strings, numbers, booleans and None.
        size: Bytes of the hash; each is two hex digits.
    """
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=size).hexdigest()


def hash_seed(parts: list[Any]) -> int:
    """Return a seed for torch's generators: equal values give equal seeds."""
    return int(hash_value(parts, size=7), 16)
