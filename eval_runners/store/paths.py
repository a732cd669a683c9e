"""Removal of this machine's paths from results before anything is published."""

from __future__ import annotations

import re
from typing import Any

ABSOLUTE_PATH = re.compile(
    r"""(?:file:(?://)?(?=/)|(?<![\w/.])(?:~\w*|[A-Za-z]:|(?:\./)?\.\.)?)[/\\](?:[^\s/\\'"]+[/\\])*([^\s/\\'"]+)[/\\]?"""
)
WHOLE_PATH = re.compile(r"""(?:~|[A-Za-z]:)?[/\\](?:[^/\\'"\n]+[/\\])+([^/\\'"\n]+)""")
"""A text that is a path and nothing else; the path may hold spaces."""


def without_paths(value: Any) -> Any:
    """Cut every absolute path in a JSON value down to its last part, so that the value may be published."""
    if isinstance(value, dict):
        return {without_paths(key): without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    if (whole := WHOLE_PATH.fullmatch(value)) and " -" not in value:
        return whole[1]
    return ABSOLUTE_PATH.sub(r"\1", value)
