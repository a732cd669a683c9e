"""Short names for content: of files, and of settings."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def hash_files(files: list[Path]) -> str:
    """Sixteen hex digits of the bytes of some files, in the order given."""
    digest = hashlib.blake2b(digest_size=8)
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def hash_value(value: Any, size: int = 6) -> str:
    """Hex digits, two for each of `size` bytes, of what JSON can say; the order of keys counts for nothing."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=size).hexdigest()
