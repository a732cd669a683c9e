"""Labelled documents from a user's file with the columns `text` and `label`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_variants.common.errors import UsageError
from sae_variants.language_model.rows import describe, list_columns, read_rows

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".arrow")
COLUMNS = ("text", "label")

Classes = dict[str, list[str]]
"""Label -> documents."""


def read_task_file(path: Path) -> Classes:
    """Read the documents of each label.

    Args:
        path: file with one of `SUFFIXES`.

    Raises:
        UsageError: the file cannot be read, a row lacks a text or a label, or there are fewer than two labels.
    """
    classes: Classes = {}
    for position, row in read_rows(path, COLUMNS):
        text, label = _text_and_label(path, position, row)
        classes.setdefault(label, []).append(text)
    if len(classes) < 2:
        labels = f"one label, {list_columns(classes)}" if classes else "no rows"
        raise UsageError(f"{path} has {labels}: a probe needs two labels")
    return classes


def _text_and_label(path: Path, position: str, row: dict[Any, Any]) -> tuple[str, str]:
    """Check one row."""
    for column in COLUMNS:
        if column not in row:
            raise UsageError(f"{path} has no column {column!r} in {position}, only {list_columns(row) or 'none'}")
        value = row[column]
        if value is None or value != value or not str(value).strip():
            raise UsageError(f"{path}: {position} has an empty or missing {column}; fill or remove it")
    text, label = row["text"], row["label"]
    if not isinstance(text, str):
        raise UsageError(f"{path}: {position} must have a string as text, not {describe(text)}")
    if isinstance(label, dict | list):
        raise UsageError(f"{path}: {position} must have a single label, not {describe(label)}")
    if isinstance(label, float) and label.is_integer():
        label = int(label)  # pandas writes a column of whole numbers with a gap as floats.
    return text, str(label)
