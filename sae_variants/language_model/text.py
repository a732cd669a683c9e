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
DEFAULT_SPLIT = "train"
METADATA = (STATE, SPLITS, "dataset_info.json", "dataset_infos.json", "sae_lens.json")


def text_files(path: Path, split: str = DEFAULT_SPLIT) -> list[Path]:
    """Return the text files at a path.

    Args:
        path: A file, a folder of files, of which hidden ones are left out, or a folder saved by `datasets`.
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
        is_only = len(splits) == 1 and split == DEFAULT_SPLIT
        return text_files(path / (splits[0] if is_only else check_name(f"split of {path}", split, splits)))
    else:
        found = (file for file in path.rglob("*") if suffix_of(file) and file.is_file() and file.name not in METADATA)
        shown = (file for file in found if not any(part[0] == "." for part in file.relative_to(path).parts))
        files = sorted(file for file in shown if _is_saved(file))
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


def check_texts(dataset: str, train_dataset: str | None, split: str, column: str) -> None:
    """Check that a split and a column can be chosen in a target's texts, and that none is held out and trained on.

    Args:
        dataset: `sandbox`, a path, or a name on the Hub.
        train_dataset: Text to train on, written so too; None for most of `dataset`.
        split: Split of the texts.
        column: Column with the documents.

    Raises:
        UsageError: No text has splits or columns, but one is chosen; or the text to train on is the one held out.
    """
    texts = [dataset] if train_dataset is None else [dataset, train_dataset]
    names = " and ".join(texts)
    if split != DEFAULT_SPLIT and not any(_has_split(text, split) for text in texts):
        raise UsageError(f"no split {split!r} can be chosen (--dataset-split, dataset_split): {names} has no splits")
    if column != TEXT and not any(_has_columns(text, split) for text in texts):
        raise UsageError(f"no column {column!r} can be chosen (--text-column, text_column): {names} has no columns")
    if train_dataset is not None and _overlap(dataset, train_dataset, split):
        raise UsageError(
            f"{dataset} would be trained on and held out: leave out --train-dataset (train_dataset), so that one "
            "document in ten is held out, or give another text"
        )


def _has_split(dataset: str, split: str) -> bool:
    if dataset == SANDBOX or not is_local_text(dataset):
        return dataset != SANDBOX
    if (Path(dataset) / SPLITS).is_file():
        return True
    state = Path(dataset) / STATE
    with reading(state):
        return state.is_file() and json.loads(state.read_text("utf-8")).get("_split") == split


def _has_columns(dataset: str, split: str) -> bool:
    if dataset == SANDBOX or not is_local_text(dataset):
        return dataset != SANDBOX
    return any(suffix_of(file) != ".txt" for file in text_files(Path(dataset), split))


def _overlap(dataset: str, train_dataset: str, split: str) -> bool:
    if dataset == train_dataset or SANDBOX in (dataset, train_dataset):
        return dataset == train_dataset
    if not is_local_text(dataset) or not is_local_text(train_dataset):
        return False
    held_out, trained_on = (
        {file.resolve() for file in text_files(Path(text), split)} for text in (dataset, train_dataset)
    )
    return not held_out.isdisjoint(trained_on)


@cache
def read_dataset(dataset: str, split: str = DEFAULT_SPLIT, column: str = TEXT) -> tuple[Document, ...]:
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
def local_documents(
    dataset: str, part: str | None, split: str = DEFAULT_SPLIT, column: str = TEXT
) -> tuple[Document, ...]:
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
        raise no_documents(dataset, len(everything), part)
    return chosen


def no_documents(what: str, n_documents: int, part: str | None) -> UsageError:
    """Return the error of a text without documents, or with none in a part.

    Args:
        what: Name of the text.
        n_documents: Documents of all parts.
        part: `train` or `heldout`; None for every document.
    """
    if not n_documents:
        return UsageError(f"{what} holds no text")
    return UsageError(
        f"{what} has {n_documents} documents, none of which falls into the {part} split: give more documents (in a "
        ".txt file, blank lines separate them)"
    )


def local_texts(dataset: str, split: str) -> list[str]:
    """Return the texts of one part, `train` or `heldout`, of the sandbox, a file or a folder."""
    return [document for document in local_documents(dataset, split) if isinstance(document, str)]
