"""Rows of a file of text, read strictly and one by one: no value becomes another, no other column matters."""

from __future__ import annotations

import contextlib
import csv
import json
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from sae_variants.common.errors import MOST_NAMES, UsageError
from sae_variants.language_model.encodings import open_text

SUFFIXES = (".txt", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
COMPRESSIONS = (".gz", ".zst")
BINARY = (".parquet", ".arrow")
LINES = (".jsonl", ".ndjson")
BLANK_LINES = re.compile(r"\n[^\S\n]*\n")
"""End of a paragraph: a line that is empty, or white space."""
LONGEST_INT = 4000
"""Digits of a JSON number beyond which it stays a string, because Python refuses to parse it."""

Row = dict[Any, Any]


def suffix_of(path: Path) -> str | None:
    """Return which of `SUFFIXES` a file has, a compression aside; None if it has none of them."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if len(suffixes) > 1 and suffixes[-1] in COMPRESSIONS and suffixes[-2] not in BINARY:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else None


def read_rows(path: Path, columns: Collection[str]) -> Iterator[tuple[str, Row]]:
    """Read the rows of a file; a .txt has a row with the column `text` for every paragraph.

    Args:
        path: File with one of `SUFFIXES`, as it is or compressed.
        columns: Columns whose values are needed; in a .parquet or .arrow file the others are None, unread.

    Yields:
        The row's position for error messages, such as `row 3`, and the row.

    Raises:
        UsageError: The file cannot be read, or a row is no object.
    """
    suffix = suffix_of(path)
    with reading(path):
        if suffix in BINARY:
            yield from _arrow_rows(path, columns)
            return
        with open_text(path, "\n" if suffix in LINES else "" if suffix in (".csv", ".tsv") else None) as file:
            if suffix == ".txt":
                for number, paragraph in enumerate(BLANK_LINES.split(file.read()), start=1):
                    yield f"paragraph {number}", {"text": paragraph}
            elif suffix in LINES:
                yield from _json_lines(path, file)
            elif suffix == ".json":
                yield from _json_rows(path, file.read(), columns)
            else:
                yield from _csv_rows(path, file, "," if suffix == ".csv" else "\t", columns)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into a UsageError of one line with its name."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"cannot read {path}: {reason[:300]}") from error


def _arrow_rows(path: Path, columns: Collection[str]) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix.lower() == ".parquet":
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        batches = file.iter_batches(batch_size=256, columns=[name for name in names if name in columns])
        counts = (file.metadata.num_rows,)
    else:
        with path.open("rb") as start:
            is_file = start.read(6) == b"ARROW1"
        reader = pa.ipc.open_file(str(path)) if is_file else pa.ipc.open_stream(str(path))
        names = reader.schema.names
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader
        counts = ()
    _check_distinct(path, names, columns)
    others: Row = {name: None for name in names if name not in columns}
    if len(others) == len(names):
        yield from ((f"row {number}", others) for number in range(1, 2 if not counts else 1 + min(counts[0], 1)))
        return
    number = 0
    for batch in batches:
        for row in batch.select([name for name in names if name in columns]).to_pylist():
            number += 1
            yield f"row {number}", {**others, **row}


def _parse_int(digits: str) -> int | str:
    return int(digits) if len(digits) < LONGEST_INT else digits


def _parse_json(path: Path, text: str, position: str = "") -> Any:
    try:
        return json.loads(text, strict=False, parse_int=_parse_int)
    except json.JSONDecodeError as error:
        where = f"{position}: " if position else ""
        raise UsageError(f"cannot read {path}: {where}{error}") from error


def _json_lines(path: Path, lines: Iterator[str] | IO[str]) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(lines, start=1):
        line = line.strip().lstrip("\ufeff")
        if not line:
            continue
        row = _parse_json(path, line, f"line {number}")
        if not isinstance(row, dict):
            raise UsageError(f"{path}: line {number} is not an object with columns, but {describe(row)}")
        yield f"row {number}", row


def _json_rows(path: Path, text: str, columns: Collection[str]) -> Iterator[tuple[str, Row]]:
    """Yield the rows of a list of objects, of an object of columns, of an object with one such list, or of lines."""
    try:
        content = _parse_json(path, text.strip())
    except UsageError:
        lines = [line for line in text.split("\n") if line.strip()]
        if len(lines) < 2 or not all(line.lstrip().startswith("{") for line in lines[:2]):
            raise
        yield from _json_lines(path, iter(text.split("\n")))
        return
    if isinstance(content, dict):
        lists = {name: value for name, value in content.items() if isinstance(value, list)}
        if wanted := [name for name in columns if name in lists and not isinstance((lists[name] or [0])[0], dict)]:
            sizes = {name: len(lists[name]) for name in wanted}
            if len(set(sizes.values())) > 1:
                each = ", ".join(f"{name} has {size}" for name, size in sizes.items())
                raise UsageError(f"cannot read {path}: its columns differ in the number of rows: {each}")
            content = [dict(zip(wanted, row, strict=True)) for row in zip(*map(lists.get, wanted), strict=True)]
        elif len(lists) == 1 and all(isinstance(row, dict) for row in next(iter(lists.values()))):
            content = content if any(name in columns for name in lists) else next(iter(lists.values()))
        content = [content] if isinstance(content, dict) else content
    if not isinstance(content, list):
        raise UsageError(f"{path} is not a list of objects with columns, but {describe(content)}")
    for number, row in enumerate(content, start=1):
        if not isinstance(row, dict):
            raise UsageError(f"{path}: row {number} is not an object with columns, but {describe(row)}")
        yield f"row {number}", row


def _csv_rows(path: Path, file: IO[str], delimiter: str, columns: Collection[str]) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(file, delimiter=delimiter, strict=True)
    _check_distinct(path, reader.fieldnames or (), columns)
    for number, row in enumerate(reader, start=1):
        if None in row:
            raise UsageError(f"{path}: row {number} has more fields than the header: put quotes around its text")
        yield f"row {number}", row


def _check_distinct(path: Path, names: Collection[str], columns: Collection[str]) -> None:
    """Raise a UsageError for a needed column that a file has twice."""
    for column in columns:
        if list(names).count(column) > 1:
            raise UsageError(f"{path} has several columns {column!r}: rename all but one")


def list_columns(names: Iterable[Any]) -> str:
    """Return the first names of columns in one line, for error messages."""
    shown = [" ".join(str(name).split())[:60] for name in names]
    more = f", and {len(shown) - MOST_NAMES} more" if len(shown) > MOST_NAMES else ""
    return ", ".join(shown[:MOST_NAMES]) + more


def describe(value: Any) -> str:
    """Return what a value is, with its start, for error messages."""
    kinds = {dict: "an object", list: "a list", bool: "a truth value", int: "a number", float: "a number"}
    kind = "null" if value is None else kinds.get(type(value), type(value).__name__)
    shown = repr(value)
    return kind if value is None else f"{kind}: {shown if len(shown) <= 60 else shown[:57] + '...'}"
