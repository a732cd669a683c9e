"""Paths inside results: folder names of SAEs, and the removal of this machine's paths before anything is published."""

from __future__ import annotations

import re
from typing import Any

ABSOLUTE_PATH = re.compile(
    r"""(?:file:(?://)?(?=/)|(?<![\w/.])(?:~\w*|[A-Za-z]:|(?:\./)?\.\.)?)[/\\](?:[^\s/\\'"]+[/\\])*([^\s/\\'"]+)[/\\]?"""
)
WHOLE_PATH = re.compile(r"""(?:~|[A-Za-z]:)?[/\\](?:[^/\\'"\n]+[/\\])+([^/\\'"\n]+)""")
"""A text that is nothing but a path, spaces and all."""


def without_paths(value: Any) -> Any:
    """The same with every absolute path in it cut down to its last part: a result may be published."""
    if isinstance(value, dict):
        return {without_paths(key): without_paths(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_paths(part) for part in value]
    if not isinstance(value, str):
        return value
    if (whole := WHOLE_PATH.fullmatch(value)) and " -" not in value:
        return whole[1]
    return ABSOLUTE_PATH.sub(r"\1", value)


def folder_name(label: str) -> str:
    """An SAE's name as a folder: its label without what stands in brackets."""
    return label.partition("[")[0].replace(":", "_").replace("/", "_")
