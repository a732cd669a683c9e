"""Files of models and SAEs that others wrote: JSON objects, and Git LFS pointers in the place of files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sae_variants.common.errors import UsageError

LFS = b"version https://git-lfs.github.com/spec"


def refuse_pointer(path: Path) -> None:
    """Check that a file is not a Git LFS pointer, which a clone without LFS leaves in the place of a large file.

    Raises:
        UsageError: It is one.
    """
    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            raise UsageError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in {path.parent}")


def read_object(path: Path) -> dict[str, Any]:
    """Return the fields of a JSON file, in any encoding of Unicode, with or without a byte order mark.

    Raises:
        UsageError: The file cannot be read, is a Git LFS pointer, or holds no JSON object.
    """
    try:
        refuse_pointer(path)
        content = json.loads(path.read_bytes())
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds {type(content).__name__}, not fields")
    return content
