"""What SAEBench's unlearning reads: questions and text from the Hub, and a corpus that is given on request only.

The questions are WMDP's on biology, which a model is to unlearn, and MMLU's on other subjects, which it is to keep. The
corpus tells which latents belong to the former, Wikipedia which belong to everything.

Source: Li et al., arXiv 2403.03218 (WMDP); Hendrycks et al., arXiv 2009.03300 (MMLU).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from sae_variants.common.errors import UsageError
from sae_variants.common.hashing import hash_files
from sae_variants.language_model.hub_text import pin_dataset, stream_rows
from sae_variants.language_model.rows import Row

FORGET = "wmdp-bio"
"""Name of the questions that are to be unlearned."""
RETAIN_TEXT = ("wikitext", "wikitext-2-raw-v1")
"""Repository and config of the text that every latent is compared with."""
CORPORA = "huggingface.co/datasets/cais/wmdp-corpora"
"""Where the corpus is given on request."""
SHORTEST = 50
"""Characters that a text must exceed to be read."""
_OWNERS = {"wikitext": "Salesforce/wikitext"}
"""Full names of repositories that SAEBench names without their owner."""

Source = tuple[str, str]
"""Repository and config, as SAEBench asks for them."""
_corpora: dict[str, Path] = {}
_rows: dict[Source, tuple[str, list[Row]]] = {}
"""Name with its commit, and rows, of what was read from the Hub."""


def register_forget_corpus(path: str) -> str:
    """Check the file of the corpus and register it.

    Args:
        path: A .jsonl file whose lines each hold a string `text`.

    Returns:
        A name for the file, which depends on its content and holds no folder.

    Raises:
        UsageError: There is no such file, a line of it is not what SAEBench reads, or no text is long enough.
    """
    if not path:
        raise UsageError(
            "unlearning needs the corpus on what is to be unlearned, which is given on request only: ask for it at "
            f"{CORPORA}, and give its bio-forget-corpus.jsonl as --forget-corpus"
        )
    if path in _corpora:
        return path
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"no file {path}: give the bio-forget-corpus.jsonl of {CORPORA} as --forget-corpus")
    try:
        with file.open(encoding="utf-8") as lines:
            longest = max((_length(path, number, line) for number, line in enumerate(lines, start=1)), default=0)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}; give another --forget-corpus") from error
    if longest <= SHORTEST:
        raise UsageError(f"{path} holds no text of more than {SHORTEST} characters; give another --forget-corpus")
    name = f"local-{hash_files([file])}"
    _corpora[name] = file.resolve()
    return name


def _length(path: str, number: int, line: str) -> int:
    """Return the characters of the text in a line of the corpus."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{path}: line {number} is not JSON: {error}; give another --forget-corpus") from error
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise UsageError(f"{path}: line {number} holds no string 'text'; give another --forget-corpus")
    return len(text)


def forget_corpus(name: str) -> Path:
    """Return the file of a corpus that was registered in this process."""
    return _corpora[name]


def questions_source(dataset_name: str) -> Source:
    """Return the repository and the config of the questions that SAEBench knows by a name."""
    return ("cais/wmdp" if dataset_name == FORGET else "cais/mmlu"), dataset_name


def read_hub_texts(dataset_names: Iterable[str]) -> dict[str, str]:
    """Read the questions and the text from the Hub, or from its local cache, before any work.

    Args:
        dataset_names: SAEBench's names of the questions.

    Returns:
        Commit of everything that was read, by its name on the Hub.

    Raises:
        UsageError: The Hub cannot be reached, or has no such questions.
    """
    versions = {}
    for source in (*map(questions_source, dataset_names), RETAIN_TEXT):
        name = f"{_OWNERS.get(source[0], source[0])}:{source[1]}"
        try:
            pinned = pin_dataset(name)
        except UsageError as error:
            reason = str(error).partition("; --dataset")[0]  # an option for other texts than these
            raise UsageError(f"unlearning cannot read its questions and texts: {reason}") from error
        if _rows.get(source, ("",))[0] != pinned:
            _rows[source] = pinned, [row for _, row in stream_rows(pinned, "test")]
        versions[name] = pinned.rpartition("@")[2]
    return versions


def hub_rows(source: Source) -> tuple[str, list[Row]]:
    """Return the name with its commit, and the rows, of what `read_hub_texts` has read."""
    return _rows[source]
