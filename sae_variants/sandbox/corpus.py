"""Real text that needs no network: the documents of the 113 labelled datasets in the `sae-probes` package.

Datasets are read in the order of their file names, and repeated documents are removed:

* exact repeats: a text that occurred before is dropped;
* near repeats: one in 64 of the 64-byte windows of a document is sampled by content, and the document is dropped if
  more than `MAX_REPEATED` of them occurred in an earlier document.

The split follows from a hash of a document's bytes alone: nine in ten documents are `train`, one in ten is `heldout`.
Documents are sorted by that hash, so that every section of the corpus mixes all datasets.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

CORPUS_VERSION = "corpus 7539524ab01605fc"
"""Version of the documents in the keys of trained SAEs and results; it changes exactly when the documents do."""
WINDOW = 64
"""Bytes in a window."""
SAMPLE_ONE_IN = 64
"""One in N windows is sampled."""
MAX_REPEATED = 0.3
"""Largest share of repeated windows in a document that is kept."""
HELDOUT_ONE_IN = 10
"""One in N documents is held out."""
SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class Document:
    """Document of the corpus."""

    text: str
    """The text."""
    source: str
    """File name, without suffixes, of the first dataset that contains the text, such as `161_agnews_0`."""
    key: int
    """First eight bytes of the text's BLAKE2b hash, which determine split and order."""


def _mix(hashes: np.ndarray) -> np.ndarray:
    """Apply splitmix64's finaliser, because the low bits of a polynomial hash are weak."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def sampled_windows(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the sampled windows of all texts, in the order of the texts.

    The hash of a window is sum_i byte_i * p^i modulo 2^64, computed for all positions at once from prefix sums.

    Returns:
        Hashes [n] of the windows, and for each the index [n] of its text.
    """
    base = 0x9E3779B97F4A7C15 | 1
    inverse = pow(base, -1, 2**64)
    hashes, owners = [], []
    chunk_chars = 500_000
    start = 0
    while start < len(texts):
        end, size = start, 0
        while end < len(texts) and size < chunk_chars:
            size += len(texts[end])
            end += 1
        encoded = [text.encode() for text in texts[start:end]]
        lengths = np.array([len(data) for data in encoded])
        data = np.frombuffer(b"".join(encoded), dtype=np.uint8).astype(np.uint64) + np.uint64(1)
        if len(data) >= WINDOW:
            powers = np.full(len(data) + 1, base, dtype=np.uint64)
            powers[0] = 1
            np.multiply.accumulate(powers, out=powers)
            inverses = np.full(len(data) + 1, inverse, dtype=np.uint64)
            inverses[0] = 1
            np.multiply.accumulate(inverses, out=inverses)
            prefix = np.concatenate([np.zeros(1, np.uint64), np.cumsum(data * powers[:-1], dtype=np.uint64)])
            windows = _mix((prefix[WINDOW:] - prefix[:-WINDOW]) * inverses[: len(data) - WINDOW + 1])
            owner = np.repeat(np.arange(start, end), lengths)
            inside = owner[: len(windows)] == owner[WINDOW - 1 :]
            chosen = inside & (windows % np.uint64(SAMPLE_ONE_IN) == 0)
            hashes.append(windows[chosen])
            owners.append(owner[: len(windows)][chosen])
        start = end
    if not hashes:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    return np.concatenate(hashes), np.concatenate(owners)


def near_repeats(texts: list[str]) -> np.ndarray:
    """Return the mask of the texts of which more than `MAX_REPEATED` sampled windows occurred in an earlier text."""
    hashes, owners = sampled_windows(texts)
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    repeated = owners[first][inverse] != owners
    sampled = np.bincount(owners, minlength=len(texts))
    seen = np.bincount(owners, weights=repeated, minlength=len(texts))
    return seen > MAX_REPEATED * np.maximum(sampled, 1)


def content_key(text: str) -> int:
    """Return the first eight bytes of the text's BLAKE2b hash."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def split_of(key: int) -> str:
    """Return the split, `train` or `heldout`, of a document with this key."""
    return "heldout" if key % HELDOUT_ONE_IN == 0 else "train"


def dataset_files() -> list[Path]:
    """Return the dataset files of the installed sae-probes package, whose import, which takes seconds, is avoided."""
    spec = find_spec("sae_probes")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the sandbox reads its text from the package sae-probes: pip install sae-probes")
    files = sorted((Path(spec.origin).parent / "data" / "cleaned_data").glob("*.csv.zst"))
    if not files:
        raise FileNotFoundError(f"no datasets in {Path(spec.origin).parent}/data/cleaned_data: reinstall sae-probes")
    return files


@lru_cache(maxsize=1)
def all_documents() -> tuple[Document, ...]:
    """Return the documents of both splits, sorted by key."""
    import pandas as pd

    first_source: dict[str, str] = {}
    for path in dataset_files():
        frame = pd.read_csv(path, compression="zstd", usecols=lambda column: column == "prompt")
        for text in frame["prompt"].dropna().astype(str):
            first_source.setdefault(text, path.name.removesuffix(".csv.zst"))
    texts = list(first_source)
    repeats = near_repeats(texts)
    documents = [
        Document(text, source, content_key(text))
        for (text, source), repeat in zip(first_source.items(), repeats, strict=True)
        if not repeat and text.strip()
    ]
    return tuple(sorted(documents, key=lambda document: document.key))


def documents(split: str) -> list[Document]:
    """Return the documents of a split, `train` or `heldout`, sorted by key; the first call takes about six seconds."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, not {split!r}")
    return [document for document in all_documents() if split_of(document.key) == split]
