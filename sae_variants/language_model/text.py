"""The documents of a target: the sandbox's, a user's files, or a dataset on the Hub."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from sae_variants.common.errors import UsageError
from sae_variants.language_model.folders import SANDBOX
from sae_variants.sandbox.corpus import content_key, split_of

TEXT_SUFFIXES = (".txt", ".jsonl", ".parquet")


def text_files(path: Path) -> list[Path]:
    if not path.exists():
        raise UsageError(f"no text at {str(path)!r}: give a {', '.join(TEXT_SUFFIXES)} file or a folder of them")
    files = sorted(p for p in path.rglob("*") if p.suffix in TEXT_SUFFIXES) if path.is_dir() else [path]
    if not files or any(p.suffix not in TEXT_SUFFIXES for p in files):
        raise UsageError(f"no {', '.join(TEXT_SUFFIXES)} file at {path}")
    return files


def read_texts(path: Path) -> list[str]:
    """The documents of one file: paragraphs of a .txt (blank lines part them), rows of column `text` otherwise."""
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
    """Documents of one split of the sandbox's or a user's text; the split is by a hash of each document."""
    if dataset == SANDBOX:
        from sae_variants.sandbox.corpus import documents

        return [document.text for document in documents(split)]
    texts = dict.fromkeys(text for path in text_files(Path(dataset)) for text in read_texts(path))
    if not texts:
        raise UsageError(f"{dataset} holds no text")
    found = [text for text in texts if split_of(content_key(text)) == split]
    if not found:
        raise UsageError(
            f"{dataset} has {len(texts)} documents, none of which falls into the {split} split: give more documents "
            "(in a .txt file, blank lines part them)"
        )
    return found
