"""Labelled documents from a user's file with the columns `text` and `label`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae_variants.common.errors import UsageError

SUFFIXES = (".csv", ".jsonl", ".parquet")
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
    try:
        for number, row in enumerate(_rows(path), start=1):
            text, label = _text_and_label(path, number, row)
            classes.setdefault(label, []).append(text)
    except UsageError:
        raise
    except (ValueError, OSError, csv.Error) as error:
        raise UsageError(f"cannot read {path}: {(str(error).splitlines() or ['it is empty'])[0]}") from error
    if len(classes) < 2:
        labels = f"one label, {next(iter(classes))}" if classes else "no rows"
        raise UsageError(f"{path} has {labels}: a probe needs two labels")
    return classes


def _text_and_label(path: Path, number: int, row: dict[Any, Any]) -> tuple[str, str]:
    """Check one row."""
    for column in COLUMNS:
        if column not in row:
            columns = ", ".join(map(str, row)) or "none"
            raise UsageError(f"{path} has no column {column!r} in row {number}, only {columns}")
        value = row[column]
        if value is None or value != value or not str(value).strip():
            raise UsageError(f"{path}: row {number} has an empty or missing {column}; fill or remove it")
    text, label = row["text"], row["label"]
    if not isinstance(text, str):
        raise UsageError(f"{path}: row {number} must have a string as text, not {text!r}")
    if isinstance(label, dict | list):
        raise UsageError(f"{path}: row {number} must have a single label, not {label!r}")
    if isinstance(label, float) and label.is_integer():
        label = int(label)  # pandas reads a column of whole numbers with a gap as floats.
    return text, str(label)


def _rows(path: Path) -> Iterator[dict[Any, Any]]:
    """Read rows as they are: no string becomes a number, no row is fitted to the header."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        import pandas as pd

        yield from pd.read_parquet(path).to_dict("records")
        return
    with path.open(encoding="utf-8-sig", newline="") as file:
        if suffix == ".jsonl":
            for number, line in enumerate(file, start=1):
                row = json.loads(line) if line.strip() else {}
                if line.strip() and not isinstance(row, dict):
                    raise UsageError(f"{path}: line {number} is not an object with text and label")
                if row:
                    yield row
            return
        csv.field_size_limit(2**31 - 1)
        for number, row in enumerate(csv.DictReader(file), start=1):
            if None in row:
                raise UsageError(f"{path}: row {number} has more fields than the header: put quotes around its text")
            yield row
