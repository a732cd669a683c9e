"""Documents on this machine: the sandbox's corpus and a user's files."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from sae_variants.common.errors import UsageError
from sae_variants.language_model.folders import SANDBOX
from sae_variants.sandbox.corpus import content_key, split_of

TEXT_SUFFIXES = (".txt", ".jsonl", ".parquet")


def text_files(path: Path) -> list[Path]:
    """Return the text files at a path, a file or a folder; raise a UsageError if there are none."""
    if not path.exists():
        raise UsageError(f"no text at {str(path)!r}: give a {', '.join(TEXT_SUFFIXES)} file or a folder of them")
    files = sorted(p for p in path.rglob("*") if p.suffix in TEXT_SUFFIXES) if path.is_dir() else [path]
    if not files or any(p.suffix not in TEXT_SUFFIXES for p in files):
        raise UsageError(f"no {', '.join(TEXT_SUFFIXES)} file at {path}")
    return files


def read_texts(path: Path) -> list[str]:
    """Return the documents of a file: paragraphs of a .txt, separated by blank lines, else rows of column `text`."""
    import pandas as pd

    try:
        if path.suffix == ".txt":
            texts = path.read_text().split("\n\n")
        else:
            frame = pd.read_json(path, lines=True) if path.suffix == ".jsonl" else pd.read_parquet(path)
            if "text" not in frame:
                raise UsageError(f"{path} has no column 'text', only {', '.join(map(str, frame.columns)) or 'none'}")
            texts = frame["text"].dropna().astype(str).tolist()
    except UsageError:
        raise
    except (ValueError, OSError) as error:
        raise UsageError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
    return [text for text in texts if text.strip()]


@cache
def local_texts(dataset: str, split: str) -> list[str]:
    """Return the documents of a split, `train` or `heldout`; the split follows from a hash of each document.

    Args:
        dataset: `sandbox`, or the path of a file or folder.
        split: `train` or `heldout`.

    Raises:
        UsageError: There is no text, or no document falls into the split.
    """
    if dataset == SANDBOX:
        from sae_variants.sandbox.corpus import documents

        return [document.text for document in documents(split)]
    texts = dict.fromkeys(text for path in text_files(Path(dataset)) for text in read_texts(path))
    if not texts:
        raise UsageError(f"{dataset} holds no text")
    chosen = [text for text in texts if split_of(content_key(text)) == split]
    if not chosen:
        raise UsageError(
            f"{dataset} has {len(texts)} documents, none of which falls into the {split} split: give more documents "
            "(in a .txt file, blank lines separate them)"
        )
    return chosen
