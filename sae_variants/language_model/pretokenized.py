"""Text that SAELens' pretokenize made token ids of: whether they are ids of the language model's tokenizer."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sae_variants.common.errors import UsageError
from sae_variants.language_model.hub_text import dataset_errors, parse_hub_dataset
from sae_variants.language_model.rows import reading
from sae_variants.language_model.text import is_local_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

METADATA = "sae_lens.json"
"""File in which pretokenize notes the name of the tokenizer."""


def check_tokenizer(dataset: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a dataset of token ids was made by a tokenizer with the same tokens, as far as the dataset says.

    Args:
        dataset: Path of a folder, or name on the Hub.
        tokenizer: Tokenizer of the language model.

    Raises:
        UsageError: An id is of another token.
    """
    name = _tokenizer_name(dataset)
    if name is None or name == tokenizer.name_or_path:
        return
    theirs = _vocabulary(name)
    if theirs is None:
        print(
            f"warning: {dataset} was tokenised by {name}, which could not be loaded and compared with the model's",
            file=sys.stderr,
        )
        return
    ours = {index: token for token, index in tokenizer.get_vocab().items()}
    for token, index in theirs.items():
        if ours.get(index, token) != token:
            raise UsageError(
                f"{dataset} was tokenised by {name}, of which token {index} is {token!r}; the model's is "
                f"{ours[index]!r}: tokenise the text by the model's tokenizer, or give it as text"
            )


@cache
def _tokenizer_name(dataset: str) -> str | None:
    """Return the tokenizer that a dataset names; None if it names none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    if is_local_text(dataset):
        files = [folder / METADATA for folder in (Path(dataset), Path(dataset).parent)]
        file = next((file for file in files if file.is_file()), None)
    else:
        hub = parse_hub_dataset(dataset)
        with dataset_errors(dataset):
            try:
                file = Path(hf_hub_download(hub.repo, METADATA, repo_type="dataset", revision=hub.revision))
            except EntryNotFoundError:
                file = None
    if file is None:
        return None
    with reading(file):
        content = json.loads(file.read_text("utf-8"))
    name = content.get("tokenizer_name") if isinstance(content, dict) else None
    return name if isinstance(name, str) else None


@cache
def _vocabulary(name: str) -> dict[str, int] | None:
    """Return the ids of a tokenizer's tokens; None if it cannot be loaded."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False).get_vocab()
    except Exception:  # whatever is wrong with it, the caller says that it was not compared
        return None
