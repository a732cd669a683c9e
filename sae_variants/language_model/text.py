"""Documents on this machine: the sandbox's corpus and a user's files."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from sae_variants.common.errors import UsageError, check_name
from sae_variants.language_model.documents import (
    TEXT,
    Document,
    is_empty,
    part_of,
    read_documents,
    report_skipped,
    text_columns,
)
from sae_variants.language_model.folders import SANDBOX
from sae_variants.language_model.rows import COMPRESSIONS, SUFFIXES, read_rows, reading, suffix_of

STATE, SPLITS = "state.json", "dataset_dict.json"
"""Files by which a folder saved by `datasets` is known: of a dataset, and of a dictionary of them."""
METADATA = (STATE, SPLITS, "dataset_info.json", "dataset_infos.json", "sae_lens.json")


def text_files(path: Path, split: str = "train") -> list[Path]:
    """Return the text files at a path.

    Args:
        path: A file, a folder of files, or a folder saved by `datasets`.
        split: Split of a folder saved by `datasets` that holds several.

    Raises:
        UsageError: There are none.
    """
    kinds = f"{', '.join(SUFFIXES)} file (also {', '.join(COMPRESSIONS)})"
    if not path.exists():
        raise UsageError(f"no text at {str(path)!r}: give a {kinds}, a folder of them, or ORG/NAME on the Hub")
    if not path.is_dir():
        files = [path]
    elif (path / SPLITS).is_file():
        with reading(path / SPLITS):
            splits = json.loads((path / SPLITS).read_text("utf-8"))["splits"]
        return text_files(path / (splits[0] if len(splits) == 1 else check_name(f"split of {path}", split, splits)))
    else:
        found = (file for file in path.rglob("*") if suffix_of(file) and file.is_file() and file.name not in METADATA)
        files = sorted(file for file in found if _is_saved(file))
    if not files or not all(map(suffix_of, files)):
        raise UsageError(f"no {kinds} at {path}")
    return files


def _is_saved(file: Path) -> bool:
    """Return whether a file belongs to its folder: in one saved by `datasets`, caches lie beside the data."""
    state = file.with_name(STATE)
    if not state.is_file():
        return True
    with reading(state):
        content = json.loads(state.read_text("utf-8"))
    return "_data_files" not in content or file.name in {entry["filename"] for entry in content["_data_files"]}


def is_local_text(dataset: str) -> bool:
    """Return whether a dataset is the sandbox's or at a path of this machine."""
    try:
        return dataset == SANDBOX or Path(dataset).exists()
    except OSError:  # a name too long for the file system
        return False


@cache
def read_dataset(dataset: str, split: str = "train", column: str = TEXT) -> tuple[Document, ...]:
    """Return the distinct documents of a file or folder, in their order.

    Args:
        dataset: Path of the file or folder.
        split: Split of a folder saved by `datasets`.
        column: Column with the documents; a .txt has paragraphs instead, separated by blank lines.

    Raises:
        UsageError: There is no text, or it cannot be read.
    """
    documents: dict[Document, None] = {}
    n_empty = n_null = 0
    for path in text_files(Path(dataset), split):
        is_plain = suffix_of(path) == ".txt"
        in_file = TEXT if is_plain else column
        for document in read_documents(str(path), read_rows(path, text_columns(in_file)), in_file):
            if is_empty(document):
                n_empty += document is not None and not is_plain
                n_null += document is None
            elif document is not None:
                documents[document] = None
    if not documents:
        raise UsageError(f"{dataset} holds no text")
    report_skipped(dataset, n_empty, n_null)
    if len({type(document) for document in documents}) > 1:
        raise UsageError(f"{dataset} mixes text, conversations and token ids: keep them in separate files")
    return tuple(documents)


@cache
def local_documents(dataset: str, part: str | None, split: str = "train", column: str = TEXT) -> tuple[Document, ...]:
    """Return the documents of one part, which follows from a hash of each document.

    Args:
        dataset: `sandbox`, or the path of a file or folder.
        part: `train` or `heldout`; None for every document.
        split: Split of a folder saved by `datasets`.
        column: Column with the documents.

    Raises:
        UsageError: There is no text, or no document falls into the part.
    """
    if dataset == SANDBOX:
        from sae_variants.sandbox.corpus import documents

        return tuple(document.text for document in documents(part or "heldout"))
    everything = read_dataset(dataset, split, column)
    chosen = everything if part is None else tuple(text for text in everything if part_of(text) == part)
    if not chosen:
        raise UsageError(
            f"{dataset} has {len(everything)} documents, none of which falls into the {part} split: give more "
            "documents (in a .txt file, blank lines separate them)"
        )
    return chosen


def local_texts(dataset: str, split: str) -> list[str]:
    """Return the texts of one part, `train` or `heldout`, of the sandbox, a file or a folder."""
    return [document for document in local_documents(dataset, split) if isinstance(document, str)]
